"""Starter policies, one for each kind of program: commented, complete, and run by a test.

Rules
- A starter is for the least that such a program needs, and says where more is written.
- What differs from machine to machine (which programs are installed) is filled in when it is written;
  a program that is listed and missing would refuse the start.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Final

_HEAD: Final = """\
# What {what} may do under this policy. What is not allowed here is denied.
# Paths are relative to this file; * stops at a slash, ** does not. docs/policy.md has every key.
# Something is denied that should not be? 'authority suggest RUN' prints the lines that would allow it.
version = 1
"""

_SECRETS: Final = """\
deny = [                           # wins over the two above
    "**/.env", "**/.env.*", "**/*.pem", "**/*.key", "**/.ssh/**", "**/.netrc", "**/.aws/**",
]"""

_LIMITS: Final = """
[limits]
memory = "{memory}"
processes = {processes}
cpus = {cpus}

[budgets]                          # hard limits: at the limit the answer is no
requests = {requests}
tool_calls = 100
network_bytes = "{network}"
file_bytes = "{files}"
wall_time = "{time}"
denials = {denials}                       # one that asks for so much that is not its own is stopped

[labels]
trusted = ["user"]                 # files and hosts whose words may steer it, such as "fs:./prompts/**"
"""

_PLAIN: Final = """
[filesystem]
read = ["./**"]                    # what it may read and list
write = ["./out/**"]               # what it may create, change and delete
{secrets}

[network]
http = []                          # such as "GET https://api.example.com/v1/**"

[process]
exec = []                          # programs that it may start itself
pass_env = ["LANG"]                # nothing else of your environment is seen
"""

_MORE: Final = """
# [tools.search]
# command = ["python3", "tools/search.py"]   # JSON in, JSON out; runs in a sandbox of its own
# content = ["query"]              # arguments that may carry untrusted text

# [credentials.example]
# from_env = "EXAMPLE_TOKEN"       # put in at the gate, never seen by the program
# hosts = ["api.example.com"]

# [approvals]
# require = ["POST https://payments.example/**"]
"""

_MODELS: Final = """
# [models]                         # found by the OpenAI and Anthropic SDKs; your key stays at the gate
# allow = ["gpt-4.1*"]             # and in [budgets]: cost_usd = "1.00"
"""

_PYTHON: Final = """
[filesystem]
read = ["./**"]                    # the program, its data, its modules
write = ["./out/**"]               # what it may create, change and delete
{secrets}

[network]
http = []                          # such as "GET https://api.example.com/v1/**"
# allow = ["db.example.com:5432"]  # a tunnel: what goes through it is neither judged nor recorded

[process]
exec = []                          # programs that it may start itself, such as "git"
# exec_from = ["./.venv"]          # a folder with compiled modules that it must load
pass_env = ["LANG"]                # nothing else of your environment is seen
env = {{ PYTHONDONTWRITEBYTECODE = "1", PYTHONUNBUFFERED = "1" }}
"""

_NODE: Final = """
[filesystem]
read = ["./**"]                    # the program, node_modules, its data
write = ["./out/**"]               # what it may create, change and delete
{secrets}

[network]
http = []                          # such as "GET https://api.example.com/v1/**"

[process]
exec = {exec}                    # itself, for workers that are processes
# exec_from = ["./node_modules"]   # compiled add-ons (*.node) that it must load
pass_env = ["LANG"]                # nothing else of your environment is seen
env = {{ NODE_ENV = "production" }}
"""

_MCP: Final = """
[filesystem]
read = ["./**"]                    # what its tools may read
write = []                         # what they may create, change and delete
{secrets}

[network]
http = []                          # hosts that its tools need, such as "GET https://api.example.com/**"

[process]
exec = []                          # programs that it may start itself
pass_env = ["LANG"]                # a token that it needs belongs into [credentials], not here

[mcp.server]                       # the server behind 'authority mcp --policy FILE -- COMMAND'
allow = []                         # tools that may be called, such as "read_*"
# approve = "changes"              # a first sight is taken; otherwise a person approves each definition

# [mcp.server.tools.search.arguments]
# path = "./docs/**"               # what an argument may be; docs/mcp.md
"""

_AGENT: Final = """
[filesystem]
read = ["./**"]                    # your project
write = ["./**"]                   # hooks, start files and build definitions stay closed all the same
{secrets}

[network]
http = [
    # "POST https://api.anthropic.com/v1/**",        # the model that it thinks with
    # "GET https://pypi.example/**",                 # packages, documentation: GET alone
]

[process]
# Its memory of you (settings, login, history) lies in a home of its own, kept between runs, and is not
# your own home: nothing of that is seen.
home = "coding-agent"
exec = {exec}
# exec_from = ["./.venv"]          # a folder that it builds and then runs from
pass_env = ["LANG", "COLORTERM"]   # nothing else of your environment is seen
"""

_TOOLS: Final = (
    *("bash", "sh", "git", "python3", "node", "npm", "make", "rg", "grep", "sed", "awk", "find"),
    *("ls", "cat", "head", "tail", "wc", "sort", "uniq", "cut", "tr", "diff", "patch", "xargs"),
    *("mkdir", "rm", "rmdir", "cp", "mv", "touch", "ln", "chmod", "env", "which", "sleep", "date"),
    *("dirname", "basename", "uname", "tee", "true", "false", "test"),
)
"""What coding agents start; those that are installed are listed."""

KINDS: Final[dict[str, str]] = {
    "program": "a program",
    "python": "a Python program in this folder",
    "node": "a Node program in this folder",
    "mcp": "an MCP server",
    "coding-agent": "a coding agent in this project",
}


def starter(kind: str, found: Callable[[str], str | None] = shutil.which) -> str:
    """The policy of a kind of `KINDS`. `found` says whether a program is installed."""
    head = _HEAD.format(what=KINDS[kind])
    small = _LIMITS.format(
        memory="1GB", processes=64, cpus=1, requests="10_000", network="20MB", files="200MB",
        time="10m", denials=50,
    )  # fmt: skip
    match kind:
        case "coding-agent":
            large = _LIMITS.format(
                memory="4GB", processes=256, cpus=2, requests="1_000_000", network="1GB",
                files="10GB", time="8h", denials=500,
            )  # fmt: skip
            programs = _listed([name for name in _TOOLS if found(name)])
            return head + _AGENT.format(secrets=_SECRETS, exec=programs) + large
        case "node":
            programs = _listed([name for name in ("node",) if found(name)])
            return head + _NODE.format(secrets=_SECRETS, exec=programs) + small + _MODELS
        case "python":
            return head + _PYTHON.format(secrets=_SECRETS) + small + _MODELS
        case "mcp":
            return head + _MCP.format(secrets=_SECRETS) + small
        case _:
            return head + _PLAIN.format(secrets=_SECRETS) + small + _MODELS + _MORE


def _listed(names: list[str]) -> str:
    """A list of TOML, eight to a line."""
    if len(names) <= 1:
        return "[" + "".join(f'"{name}"' for name in names) + "]"
    rows = [names[at : at + 8] for at in range(0, len(names), 8)]
    lines = [f"    {', '.join(f'{chr(34)}{name}{chr(34)}' for name in row)}," for row in rows]
    return "[\n" + "\n".join(lines) + "\n]"
