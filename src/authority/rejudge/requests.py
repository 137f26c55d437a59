"""A request and its facts, put together again from the entry of its verdict.

Rules
- The resource is read again from its canonical text. The arguments are read from the recorded body,
  and hashed: they have to be those that the request's digest names.
- Where the body is not at hand (its digest alone, or sealed without keys), arguments are made up that
  cost what the entry says they cost: the amount is then taken as given, and the entry is counted so.
- Facts (time, numbers, sizes, what the reader refused) are the recorded ones.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256
from typing import Any, Final, NamedTuple

import msgspec

from authority.kernel import entries, values
from authority.kernel.addresses import ResourceError
from authority.kernel.capabilities import Token
from authority.kernel.codes import Code, Layer
from authority.kernel.facts import Facts, Problem, Request, request_digest
from authority.kernel.pointers import Unfit
from authority.kernel.requests import (
    EFFECTS,
    HTTP_OVERHEAD,
    MAX_BODY,
    FsAppend,
    FsRead,
    FsRename,
    FsWrite,
    HttpRequest,
    MsgSend,
    Output,
)
from authority.kernel.resources import Resource, parse_text
from authority.rejudge.sources import Sources

_DECODERS: Final = {
    name: msgspec.json.Decoder(spec.arguments).decode for name, spec in EFFECTS.items()
}


class Again(NamedTuple):
    """What `decide` is asked with. `made_up`: the arguments were not at hand. `wrong`: why the
    recorded arguments can't be those of the request."""

    request: Request
    facts: Facts
    made_up: bool = False
    wrong: str = ""


@lru_cache(maxsize=8192)
def _resource(text: str) -> Resource | None:
    try:
        return parse_text(text)
    except ResourceError:
        return None


@lru_cache(maxsize=8192)
def _read(
    effect: str, resource: str, verb: str, target: str, data: bytes
) -> tuple[Any, str, str] | None:
    """The arguments, the digest of their bytes, and that of the request; None for what is none."""
    try:
        arguments = None if effect == "output" else _DECODERS[effect](data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return arguments, sha256(data).hexdigest(), request_digest(effect, resource, verb, data, target)


def again(entry: entries.Admit | entries.Denied, token: Token | None, sources: Sources) -> Again:
    """The request of a verdict."""
    given = isinstance(entry, entries.Denied) and entry.given
    arguments: Any = None
    made_up, wrong = False, ""
    resource = _resource(entry.resource) if entry.resource else None
    target = _resource(entry.target) if entry.target else None
    if entry.target and target is None:
        target = Resource("", entry.target)
    unread = isinstance(entry, entries.Denied) and entry.layer == Layer.SCHEMA
    of_handles = bool(entry.parts) or entry.effect == "value.reveal"
    read = not given and (not unread or of_handles)
    if read and entry.effect in EFFECTS:
        data = None if entry.arguments is None else sources.body(entry.arguments)
        found = None
        if data is not None:
            found = _read(entry.effect, entry.resource, entry.verb, entry.target, data)
            if entry.parts:
                found = _filled(entry, data, sources)
            wrong = _wrong(entry, found)
        if entry.effect == "output":
            arguments = Output(bytes(entry.arguments.size if entry.arguments else 0))
        elif found is not None:
            arguments = found[0]
        elif data is None:
            arguments, made_up = _made_up(entry), True
    request = Request(
        run=entry.run,
        stream=entry.stream,
        n=entry.n,
        effect=entry.effect,
        shown=entry.resource,
        digest=entry.request,
        resource=resource,
        target=target,
        arguments=arguments,
        verb=entry.verb,
        token=token,
        handle=bool(entry.handle) or entry.rule == "handles",
        parts=tuple(entry.parts),
    )
    problem = None
    hidden = isinstance(entry, entries.Denied) and entry.hidden
    if isinstance(entry, entries.Denied) and entry.given:
        problem = Problem(Code(entry.code), Layer(entry.layer), entry.reason)
    facts = Facts(
        time=entry.at or entry.time,
        mac_ok=bool(entry.caps),
        problem=problem,
        numbers=entry.numbers,
        looked_up=entry.facts,
        body=entry.arguments,
        filled=entry.filled,
        unfit=entry.reason if isinstance(entry, entries.Denied) and hidden and unread else "",
    )
    return Again(request, facts, made_up, wrong)


def _filled(
    entry: entries.Admit | entries.Denied, data: bytes, sources: Sources
) -> tuple[Any, str, str] | None:
    """The same of a request with handles in it: `data` names them; their values, where they are at
    hand, stand in a body of their own."""
    with_values = None if entry.filled is None else sources.body(entry.filled)
    try:
        if with_values is not None:
            arguments = _DECODERS[entry.effect](with_values)
        else:
            blank = values.fill(
                entry.effect, msgspec.json.decode(data), {part.at: "" for part in entry.parts}
            )
            arguments = msgspec.convert(blank, EFFECTS[entry.effect].arguments, strict=False)
    except (msgspec.MsgspecError, UnicodeDecodeError, Unfit, KeyError):
        return None
    digest = request_digest(entry.effect, entry.resource, entry.verb, data, entry.target)
    return arguments, sha256(data).hexdigest(), digest


def _wrong(entry: entries.Admit | entries.Denied, found: tuple[Any, str, str] | None) -> str:
    """Why the recorded bytes can't be those that the entry commits to, or nothing."""
    if found is None:
        return "its arguments are not those of the effect"
    body = entry.arguments
    if body is not None and body.kept != "sealed" and found[1] != body.digest:
        return "its arguments are not those of their digest"
    if found[2] != entry.request:
        return "its arguments are not those that the request's digest names"
    return ""


def _made_up(entry: entries.Admit | entries.Denied) -> Any:
    """Arguments that cost what the entry says; None where that can't be done for the effect."""
    cost, numbers, effect = entry.reserve, entry.numbers, entry.effect
    if effect == "fs.read":
        return FsRead(numbers.get("offset", 0), numbers.get("length"))
    if effect in ("fs.write", "fs.append"):
        data = bytes(min(cost.get("file_bytes", 0), MAX_BODY * 8))
        return FsWrite(data) if effect == "fs.write" else FsAppend(data)
    if effect == "fs.rename":
        return FsRename(entry.target)
    if effect == "http.request":
        wanted = min(max(cost.get("network_bytes", 0) - HTTP_OVERHEAD, 0), MAX_BODY * 8)
        answer = min(wanted, MAX_BODY)
        return HttpRequest(
            method=entry.verb or "GET", body=bytes(wanted - answer), max_bytes=answer
        )
    if effect == "msg.send":
        kept = entry.arguments is not None and entry.arguments.kept in ("store", "sealed")
        own = entry.arguments.size if kept and entry.arguments else 0
        return MsgSend(bytes(min(max(cost.get("stored_bytes", 0) - own, 0), MAX_BODY * 8)))
    try:
        return EFFECTS[effect].arguments()
    except TypeError:
        return None
