"""The table of effects: what each takes, what it may cost at worst, whether it changes the world.

Pure. A request's arguments arrive as MessagePack and are decoded into exactly one Struct here: an
unknown argument, a missing one or one of another type is `E_SCHEMA_INVALID`, never ignored.

Rules
- Only reading regular files and directories of this machine, receiving what already arrived at the
  gate, and asking it for the time or for chance is a read. Everything else is a side effect: its
  intent is durable before it happens.
- An `internal` effect is asked by the gate's own services for a program that does not speak the
  protocol; no frame can name it. A `flow` is the dimension that the pieces of an effect that goes on
  are charged to, beside what it reserved.
- `numbers` lists the arguments that quotas may sum up: non-negative integers.
- `reserve` is the worst case in each budget dimension, from the arguments and from facts that the
  gate looked up (a file's size). What an effect uses never exceeds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import msgspec

MAX_READ = 8 * 1024 * 1024
MAX_BODY = 8 * 1024 * 1024
MAX_NAME = 4096
LIST_LIMIT = 10_000


Amount = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
"""A non-negative integer that every JSON reader keeps exact; below zero is no amount."""
Name = Annotated[str, msgspec.Meta(max_length=MAX_NAME)]


class _Arguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What all arguments have: nothing unknown is let through, nothing changes later."""


class FsRead(_Arguments, frozen=True):
    """`offset` and `length` in bytes; `length` None reads to the end, up to `MAX_READ`."""

    offset: Amount = 0
    length: Amount | None = None


class Nothing(_Arguments, frozen=True):
    """No arguments."""


class FsWrite(_Arguments, frozen=True):
    """The whole new content. `create_only` refuses an existing file."""

    data: bytes
    create_only: bool = False


class FsAppend(_Arguments, frozen=True):
    """Bytes for the end of a file."""

    data: bytes


class FsMkdir(_Arguments, frozen=True):
    """`parents`: the folders on the way are made too, as far as the policy allows them."""

    parents: bool = False


class FsRename(_Arguments, frozen=True):
    """The new path."""

    to: Name


class FsOpen(_Arguments, frozen=True):
    """A file is opened for reading, so all of it counts: `size` bytes (of what came to it, when it
    grew while it was open). `dev` and `ino` say which file it was."""

    size: Amount = 0
    dev: Amount = 0
    ino: Amount = 0


class FsModify(_Arguments, frozen=True):
    """A file is opened for changing in place; at most `lease` bytes are written before the next such
    request for it. `create` makes it when it isn't there, `truncate` cuts it to that size."""

    lease: Amount = 0
    create: bool = False
    truncate: Amount | None = None


class FsAttributes(_Arguments, frozen=True):
    """Permission bits, times (microseconds since the epoch), or one extended attribute."""

    mode: Amount | None = None
    accessed: int | None = None
    modified: int | None = None
    attribute: Name = ""
    size: Amount = 0


class FsSymlink(_Arguments, frozen=True):
    """`text` is what the link says, printable; nothing follows it here."""

    text: Annotated[str, msgspec.Meta(max_length=4 * MAX_NAME)]


class FsLink(FsRename, frozen=True):
    """A further name `to` for the file."""


class HttpRequest(_Arguments, frozen=True):
    """`max_bytes` bounds the response body in bytes; a longer one fails."""

    method: Annotated[str, msgspec.Meta(max_length=16)] = "GET"
    headers: list[tuple[str, str]] = []
    body: bytes = b""
    max_bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_BODY)] = 1024 * 1024


class ToolCall(_Arguments, frozen=True):
    """The tool's own arguments, by name."""

    arguments: dict[str, Any] = {}


class McpPrompt(_Arguments, frozen=True):
    """The prompt's own arguments: texts by name."""

    arguments: dict[str, str] = {}


class ModelCall(_Arguments, frozen=True):
    """A request to a model in the form of `api`: the body itself as `request`, from a program that
    asks through the channel; or the digest and size of one that came to the run's endpoint.
    """

    api: Annotated[str, msgspec.Meta(max_length=32)] = ""
    request: dict[str, Any] = {}
    sha256: Annotated[str, msgspec.Meta(max_length=64)] = ""
    size: Amount = 0


class AgentSpawn(_Arguments, frozen=True):
    """`restriction` narrows the child's capability (keys of `capabilities.Restriction`)."""

    arguments: list[str] = []
    budgets: dict[str, Amount] = {}
    restriction: dict[str, Any] | None = None


class Wait(_Arguments, frozen=True):
    """How long to wait at most; 0 looks and returns."""

    timeout_ms: Annotated[int, msgspec.Meta(ge=0, le=60_000)] = 0


class MsgSend(_Arguments, frozen=True):
    """The message."""

    data: bytes


class Connect(_Arguments, frozen=True):
    """A tunnel. `via` names how the program asked for it, for people who read the log."""

    via: Annotated[str, msgspec.Meta(max_length=32)] = ""


class SysRandom(_Arguments, frozen=True):
    """How many random bytes."""

    size: Annotated[int, msgspec.Meta(ge=1, le=64 * 1024)] = 16


class Output(_Arguments, frozen=True):
    """What the program printed."""

    data: bytes


class Reveal(_Arguments, frozen=True):
    """`path` points into the handle's value; with `schema` what is there is read as that type, and
    `within` points into it. See `values`."""

    path: Annotated[str, msgspec.Meta(max_length=1024)] = ""
    schema: dict[str, Any] | None = None
    within: Annotated[str, msgspec.Meta(max_length=1024)] = ""


class Compute(_Arguments, frozen=True):
    """`program` is run in a room without authority; it finds `values` on its standard input."""

    program: Annotated[str, msgspec.Meta(max_length=256 * 1024)]
    values: list[Any] = []


class Spec(msgspec.Struct, frozen=True):
    """One effect: its argument type, whether it is a side effect, quota arguments, worst case."""

    name: str
    arguments: type[_Arguments]
    side_effect: bool
    reserve: Callable[[Any, Mapping[str, Any]], dict[str, int]]
    numbers: tuple[str, ...] = ()
    control: tuple[str, ...] = ()
    content: tuple[str, ...] = ()
    internal: bool = False
    flow: str = ""


HTTP_OVERHEAD = 64 * 1024
"""Bytes reserved beside the bodies for the lines and headers of one HTTP exchange."""


def _one(_a: Any, _f: Mapping[str, Any]) -> dict[str, int]:
    return {"requests": 1}


def _read(a: FsRead, f: Mapping[str, Any]) -> dict[str, int]:
    size = int(f.get("size", MAX_READ))
    left = max(0, size - a.offset)
    wanted = left if a.length is None else min(a.length, left)
    return {"requests": 1, "file_bytes": min(wanted, MAX_READ)}


def _data(a: FsWrite | FsAppend, _f: Mapping[str, Any]) -> dict[str, int]:
    return {"requests": 1, "file_bytes": len(a.data)}


def _opened(a: FsOpen, _f: Mapping[str, Any]) -> dict[str, int]:
    return {"requests": 1, "file_bytes": a.size}


def _leased(a: FsModify, _f: Mapping[str, Any]) -> dict[str, int]:
    return {"requests": 1, "file_bytes": a.lease}


def _none(_a: Any, _f: Mapping[str, Any]) -> dict[str, int]:
    return {}


def _http(a: HttpRequest, _f: Mapping[str, Any]) -> dict[str, int]:
    return {"requests": 1, "network_bytes": len(a.body) + a.max_bytes + HTTP_OVERHEAD}


def _tool(_a: ToolCall, _f: Mapping[str, Any]) -> dict[str, int]:
    return {"requests": 1, "tool_calls": 1}


def _mcp(_a: _Arguments, _f: Mapping[str, Any]) -> dict[str, int]:
    return {"requests": 1, "tool_calls": 1}


def _model(_a: ModelCall, _f: Mapping[str, Any]) -> dict[str, int]:
    # What it costs beside this rests on the policy's prices: kernel.models, asked by decide.
    return {"requests": 1}


def _spawn(_a: AgentSpawn, _f: Mapping[str, Any]) -> dict[str, int]:
    return {"requests": 1, "runs": 1}


def _message(a: MsgSend, _f: Mapping[str, Any]) -> dict[str, int]:
    return {"requests": 1, "stored_bytes": len(a.data)}


def _output(a: Output, _f: Mapping[str, Any]) -> dict[str, int]:
    return {"output_bytes": len(a.data)}


EFFECTS: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        Spec("fs.read", FsRead, False, _read, ("offset", "length")),
        Spec("fs.stat", Nothing, False, _one),
        Spec("fs.list", Nothing, False, _one),
        Spec("fs.write", FsWrite, True, _data, content=("data",)),
        Spec("fs.append", FsAppend, True, _data, content=("data",)),
        Spec("fs.mkdir", FsMkdir, True, _one),
        Spec("fs.rename", FsRename, True, _one),
        Spec("fs.delete", Nothing, True, _one),
        Spec("http.request", HttpRequest, True, _http, ("max_bytes",), flow="network_bytes"),
        Spec("net.connect", Connect, True, _one, internal=True, flow="network_bytes"),
        Spec("net.resolve", Nothing, False, _one, internal=True),
        Spec("fs.mount", Nothing, True, _none, internal=True),
        Spec("fs.look", Nothing, False, _none, internal=True),
        Spec("fs.show", Nothing, False, _none, internal=True),
        Spec("fs.open", FsOpen, False, _opened, internal=True),
        Spec("fs.modify", FsModify, True, _leased, internal=True),
        Spec("fs.attributes", FsAttributes, True, _one, internal=True),
        Spec("fs.symlink", FsSymlink, True, _one, internal=True),
        Spec("fs.link", FsLink, True, _one, internal=True),
        Spec("tool.call", ToolCall, True, _tool),
        Spec("mcp.list", Nothing, True, _one),
        Spec("mcp.serve", Nothing, True, _one, internal=True, flow="output_bytes"),
        Spec("mcp.read", Nothing, True, _mcp),
        Spec("mcp.prompt", McpPrompt, True, _mcp),
        Spec("model.chat", ModelCall, True, _model, flow="network_bytes"),
        Spec("model.embed", ModelCall, True, _model, flow="network_bytes"),
        Spec("model.count", ModelCall, True, _model, flow="network_bytes"),
        Spec("agent.spawn", AgentSpawn, True, _spawn),
        Spec("agent.wait", Wait, False, _one),
        Spec("msg.send", MsgSend, True, _message, content=("data",)),
        Spec("msg.receive", Wait, False, _one),
        Spec("sys.time", Nothing, False, _one),
        Spec("sys.random", SysRandom, False, _one),
        Spec("sys.uuid", Nothing, False, _one),
        Spec("value.reveal", Reveal, False, _one),
        Spec("value.compute", Compute, True, _tool),
        Spec("output", Output, True, _output, content=("data",), internal=True),
    )
}
