"""Small readings that the client needs: of what it is given, and of what the gate answers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeVar

from authority import protocol
from authority.agent.errors import BadReply, BadRequest, Receipt

_T = TypeVar("_T")


def token_bytes(capability: str | bytes) -> bytes:
    """A token's bytes, also of one that is written as text."""
    if isinstance(capability, bytes):
        return capability
    from authority import tokens

    return tokens.from_text(capability.strip())


def utf8_or_bytes(resource: str) -> str | bytes:
    """A file's name that is not UTF-8 as its bytes. Raises `BadRequest`."""
    try:
        resource.encode()
    except UnicodeEncodeError:
        try:
            return os.fsencode(resource)
        except UnicodeEncodeError as error:
            raise BadRequest("the resource's name is no text and no file name") from error
    return resource


def receipt_of(reply: protocol.Reply) -> Receipt | None:
    """The entry that an answer rests on; None when it has none of its own."""
    return None if reply.seq is None else Receipt(reply.seq, reply.hash.hex())


def as_bytes(data: bytes | str) -> bytes:
    """What is written: text as UTF-8."""
    return data.encode() if isinstance(data, str) else bytes(data)


def map_of(effect: str, value: Any) -> dict[str, Any]:
    """An answer that has to be a map. Raises `BadReply`."""
    if not isinstance(value, dict):
        raise BadReply(f"the gate answered {effect} with something else than a map")
    return value


def field(value: Mapping[str, Any], name: str, kind: type[_T]) -> _T:
    """A member of an answer that has to be there. Raises `BadReply`."""
    found = value.get(name)
    if not isinstance(found, kind):
        raise BadReply(f"the gate's answer has no valid field {name!r}")
    return found
