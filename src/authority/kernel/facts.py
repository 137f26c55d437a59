"""What is decided about: a request in its canonical form, and what comes from outside."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from authority.kernel import budgets
from authority.kernel.capabilities import Token
from authority.kernel.codes import Code, Layer
from authority.kernel.entries import Body
from authority.kernel.handles import Part
from authority.kernel.requests import Spec
from authority.kernel.resources import Resource


class Request(msgspec.Struct, frozen=True):
    """What was asked, after the frame was read.

    `resource` and `target` are canonical (None where they could not be made canonical, then
    `Facts.problem` says so); `shown` is the printable text of what was asked for; `digest` names
    the request's canonical form, so that repeats and approvals refer to the same thing. `handle`: a
    handle is wanted in place of the answer; `parts` came from handles (`arguments` hold the values).
    """

    run: str
    stream: int
    n: int
    effect: str
    shown: str
    digest: str
    resource: Resource | None = None
    target: Resource | None = None
    arguments: Any = None
    verb: str = ""
    token: Token | None = None
    handle: bool = False
    parts: tuple[Part, ...] = ()


class Problem(msgspec.Struct, frozen=True):
    """A refusal made while the request was read, before any rule was asked."""

    code: Code
    layer: Layer
    reason: str


class Facts(msgspec.Struct, frozen=True):
    """What comes from outside: time (us), whether the MAC holds, what the gate looked up (`size` of a
    file, `canary`: the name of a planted credential that stands in what is sent).

    `preview`: asked before anything was looked up, to see whether it is worth it. Never recorded.
    `filled`: the arguments with the values of handles; `unfit`: why they can't be had, or be used.
    """

    time: int
    mac_ok: bool = False
    problem: Problem | None = None
    numbers: dict[str, int] = {}
    looked_up: dict[str, Any] = {}
    body: Body | None = None
    preview: bool = False
    filled: Body | None = None
    unfit: str = ""


def request_digest(
    effect: str, resource: str, verb: str, arguments: bytes, target: str = ""
) -> str:
    """SHA-256 (hex) of a request's canonical form; every part is preceded by its length."""
    parts = [b"authority/request/1"]
    for part in (effect.encode(), resource.encode(), verb.encode(), target.encode(), arguments):
        parts += (len(part).to_bytes(8, "big"), part)
    return hashlib.sha256(b"".join(parts)).hexdigest()


def numbers(spec: Spec, arguments: Any) -> dict[str, int]:
    """The non-negative integers among a request's arguments, which quotas may sum up."""
    if spec.name == "tool.call":
        source: Mapping[str, Any] = arguments.arguments
        names: tuple[str, ...] = tuple(source)
    else:
        names = spec.numbers
        source = {name: getattr(arguments, name) for name in names}
    return {
        name: value
        for name in names
        if type(value := source[name]) is int and 0 <= value <= budgets.MAX_AMOUNT
    }
