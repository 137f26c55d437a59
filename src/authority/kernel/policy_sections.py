"""What a policy says, as frozen values: its sections, its errors, its answers.

Pure. Units: time in microseconds, sizes in bytes, money in millionths of a dollar, processors in
thousandths. Patterns stand as they were written; `Policy.judge` decides, these lists are for
display and for those who set up a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

from authority.errors import AuthorityError
from authority.kernel.mcp_rules import McpServer
from authority.kernel.tool_rules import ToolRules

EMPTY: Final[Mapping[str, Any]] = MappingProxyType({})


class PolicyError(AuthorityError):
    """A policy that is not loaded: where (`file`, `key`, `line` or 0), what, and what to do."""

    def __init__(self, file: str, key: str, line: int, message: str, hint: str = "") -> None:
        where = f"{file}:{line}" if line else file
        super().__init__(": ".join(part for part in (where, key, message) if part), hint)
        self.file = file
        self.key = key
        self.line = line


class Source(msgspec.Struct, frozen=True):
    """A policy text (`toml` or `json`), and the real path of the folder it is read against."""

    text: str
    format: str
    base: str
    name: str


class Filesystem(msgspec.Struct, frozen=True):
    """`files`: how the program reaches them: mount, calls, requests or bind; empty: the best that
    the machine has of the first two."""

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    files: str = ""


class Network(msgspec.Struct, frozen=True):
    """`allow`: opaque tunnels. `http`: judged per request. `private`: may be not public.

    `proxy`: the company's own, as `http://host:port`, or nothing. `ca`: absolute paths of
    certificates that are trusted beside the system's.
    """

    allow: tuple[str, ...] = ()
    http: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    private: tuple[str, ...] = ()
    proxy: str = ""
    ca: tuple[str, ...] = ()


class Process(msgspec.Struct, frozen=True):
    """`exec`: programs the agent may start. `exec_from`: folders (absolute) whose files may be run
    and loaded though the run writes them. `home`: the name of a home folder that outlives the run.
    `pass_env`: variables of the caller it sees."""

    exec: tuple[str, ...] = ()
    exec_from: tuple[str, ...] = ()
    home: str = ""
    pass_env: tuple[str, ...] = ()
    env: Mapping[str, str] = EMPTY


class Limits(msgspec.Struct, frozen=True):
    """`memory`, `tmp` and `log` in bytes, `cpus` in thousandths of a processor. `log` is what the
    entries of the run and its descendants may take in the log."""

    memory: int = 1_000_000_000
    processes: int = 64
    cpus: int = 1000
    tmp: int = 64_000_000
    log: int = 2_000_000_000


class Tool(msgspec.Struct, frozen=True):
    """A process tool. `rules`: what is said of its values. `base`: folder of the policy."""

    command: tuple[str, ...]
    base: str
    timeout: int = 30_000_000
    rules: ToolRules = ToolRules(reads="untrusted")
    pass_env: tuple[str, ...] = ()
    env: Mapping[str, str] = EMPTY

    @property
    def content(self) -> tuple[str, ...] | None:
        return self.rules.content

    @property
    def reads(self) -> str:
        return self.rules.reads


class Agent(msgspec.Struct, frozen=True):
    """A child agent. `policy` empty: it runs under its parent's."""

    command: tuple[str, ...]
    base: str
    policy: str = ""
    budgets: Mapping[str, int] = EMPTY


class Credential(msgspec.Struct, frozen=True):
    """A secret that the gate puts into requests to `hosts` (`host` means port 443)."""

    from_env: str
    hosts: tuple[str, ...]
    header: str = "Authorization"
    format: str = "Bearer {}"


class Upstream(msgspec.Struct, frozen=True):
    """Where models are asked: `models` (all when empty), a key from `from_env` (none when empty).

    `limit` is what a chat's limit of output is called there, where the request gives none.
    """

    url: str
    api: str
    from_env: str = ""
    models: tuple[str, ...] = ()
    limit: str = "max_tokens"


class Models(msgspec.Struct, frozen=True):
    """`default_max_output` 0: the built-in one. `count`: the vendor may bound the input."""

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    default_max_output: int = 0
    input_bound: str = ""
    upstream: Mapping[str, Upstream] = EMPTY


class Endorse(msgspec.Struct, frozen=True):
    """Words of `sources`, held to the narrow `type`, may steer `to`, up to `bits` bits in a run."""

    sources: tuple[str, ...]
    type: str
    to: tuple[str, ...]
    bits: int


class Labels(msgspec.Struct, frozen=True):
    """`approve`: where a person may approve what untrusted words steer. `compute`: rooms without
    authority may be used."""

    trusted: tuple[str, ...] = ()
    content: tuple[str, ...] = ()
    secrets: Mapping[str, tuple[str, ...]] = EMPTY
    release: Mapping[str, tuple[str, ...]] = EMPTY
    approve: tuple[str, ...] = ()
    endorse: Mapping[str, Endorse] = EMPTY
    compute: bool = False


class Approvals(msgspec.Struct, frozen=True):
    """Patterns of what a person has to approve, once for each request."""

    require: tuple[str, ...] = ()


class Sections(msgspec.Struct, frozen=True):
    """A policy's sections after everything that it extends was taken into account.

    `budgets` and `limits` hold only what some policy of the chain set; the defaults come last.
    """

    explain: str = "operator"
    filesystem: Filesystem = Filesystem()
    network: Network = Network()
    process: Process = Process()
    limits: Mapping[str, int] = EMPTY
    tools: Mapping[str, Tool] = EMPTY
    mcp: Mapping[str, McpServer] = EMPTY
    agents: Mapping[str, Agent] = EMPTY
    credentials: Mapping[str, Credential] = EMPTY
    models: Models = Models()
    budgets: Mapping[str, int] = EMPTY
    labels: Labels = Labels()
    approvals: Approvals = Approvals()


class Judgement(msgspec.Struct, frozen=True):
    """The answer to one request: which rule, and for the operator why.

    `partial`: a directory that is only the way to something readable. Whoever lists it shows those
    names alone for which `fs.stat` is allowed.
    """

    allowed: bool
    rule: str = ""
    reason: str = ""
    partial: bool = False


class Explanation(msgspec.Struct, frozen=True):
    """`missing`: the rule that is not there. `snippet`: TOML that would allow exactly this.

    The snippet is empty where no addition helps: a rule that forbids has to be changed by a person.
    """

    missing: str
    snippet: str = ""


UPSTREAMS: Final[Mapping[str, Upstream]] = MappingProxyType(
    {
        "openai": Upstream(
            "https://api.openai.com:443/v1",
            "openai",
            "OPENAI_API_KEY",
            ("gpt-*", "chatgpt-*", "o1*", "o3*", "o4*", "text-embedding-*"),
            "max_completion_tokens",
        ),
        "anthropic": Upstream(
            "https://api.anthropic.com:443", "anthropic", "ANTHROPIC_API_KEY", ("claude-*",)
        ),
    }
)
"""Where models are asked when a policy that allows some names no upstream."""

DEFAULT_BUDGETS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "denials": 50,
        "runs": 16,
        "output_bytes": 64_000_000,
        "stored_bytes": 256_000_000,
        "wall_time": 3_600_000_000,
    }
)
"""Limits that hold where no policy of the chain sets one."""


def keeps_all(budgets: Mapping[str, int]) -> bool:
    """Whether a policy asks for more bodies to be kept than is usual: then whole exchanges are, and
    what was read through mounts, so that a replay has them."""
    return budgets.get("stored_bytes", 0) > DEFAULT_BUDGETS["stored_bytes"]
