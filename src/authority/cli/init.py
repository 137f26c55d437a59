"""`authority init`: a state directory with its keys, and a commented starter policy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from authority.cli.common import parser, print_json
from authority.errors import AuthorityError
from authority.gate import statedir
from authority.kernel.canonical import printable

POLICY_NAME = "authority.toml"
STARTER = """\
# What a program that runs under this policy may do. What is not allowed here is denied.
# Paths are relative to this file; * stops at a slash, ** does not. docs/policy.md has every key.
version = 1

[filesystem]
read = ["./**"]                    # what it may read and list
write = ["./out/**"]               # what it may create, change and delete
deny = ["**/.env", "**/.git/**", "**/*.pem", "**/*.key"]   # wins over the two above

[network]
http = []                          # such as "GET https://api.example.com/v1/**"

[process]
exec = []                          # programs that it may start itself
pass_env = ["LANG"]                # nothing else of your environment is seen

[limits]
memory = "1GB"
processes = 64
cpus = 1

[budgets]                          # hard limits: at the limit the answer is no
requests = 10_000
tool_calls = 100
network_bytes = "20MB"
file_bytes = "200MB"
wall_time = "10m"
denials = 50                       # a program that asks for so much that is not its own is stopped

[labels]
trusted = ["user"]                 # files and hosts whose words may steer it, such as "fs:./prompts/**"

# [tools.search]
# command = ["python3", "tools/search.py"]   # JSON in, JSON out; runs in a sandbox of its own
# content = ["query"]              # arguments that may carry untrusted text

# [credentials.example]
# from_env = "EXAMPLE_TOKEN"       # put in at the gate, never seen by the program
# hosts = ["api.example.com"]

# [approvals]
# require = ["POST https://payments.example/**"]
"""


def main(arguments: Sequence[str]) -> int:
    made = parser("init", "Make a state directory with keys, and a starter policy in this folder.")
    made.add_argument("--policy", type=Path, default=Path(POLICY_NAME), metavar="FILE")
    made.add_argument("--no-policy", action="store_true", help="keys only")
    options = made.parse_args(arguments)
    root = (options.state or statedir.default_root()).absolute()
    existing = statedir.StateDir(root).initialised()
    fingerprint = ""
    if existing:
        from authority.audit.checkpoints import load_key

        directory = statedir.open_existing(root)
        fingerprint = load_key(directory.signing_key).public.fingerprint
    else:
        from authority.gate.opening import initialise

        directory, fingerprint = initialise(root)
    wrote = "" if options.no_policy else _starter(options.policy)
    found = {
        "state": str(root),
        "created": not existing,
        "fingerprint": fingerprint,
        "policy": wrote,
    }
    if options.json:
        print_json(found)
        return 0
    verb = "uses" if existing else "made"
    print(f"{verb} the state directory {printable(str(root))}")
    print(f"the log's public key has the fingerprint {fingerprint}")
    print("  keep it somewhere else: 'authority audit verify --key' checks the log against it")
    if wrote:
        print(f"wrote the starter policy {printable(wrote)}")
    elif not options.no_policy:
        print(f"left the policy {printable(str(options.policy))} as it is")
    policy = printable(str(options.policy))
    print(f"next: authority run --policy {policy} -- python3 my_agent.py")
    return 0


def _starter(path: Path) -> str:
    """Write the starter unless there is a file; never through a link. The path written, or ''."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return ""
    except OSError as error:
        raise AuthorityError(
            f"can't write {printable(str(path))}: {error.strerror}", "name another --policy"
        ) from error
    with open(fd, "w", encoding="utf-8") as f:
        f.write(STARTER)
    parent = path.absolute().parent.stat()
    if os.geteuid() == 0 and parent.st_uid != 0:
        os.chown(path, parent.st_uid, parent.st_gid)
    return str(path)
