"""Messages: one MessagePack value in each frame of a stream above 0.

    hello    [0, "authority/1", {client, capability?}]
    welcome  [0, {run, frame, cwd, pipeline}]
    requests [1, [[n, effect, resource, arguments, capability, flags], ...]]
    replies  [1, [[n, status, seq, hash, body], ...]]
    fatal    [2, code, sentence], and then the end

A message that does not have its form is fatal for its stream. Arguments that break a rule refuse
only the request that they belong to, since its neighbours are readable: here they stay bytes
(`arguments.checked_arguments` reads them). The number of requests is judged before any is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from authority.protocol.arguments import MAX_INT, check_value
from authority.protocol.frames import (
    INVALID,
    MAX_FRAME,
    TOO_LARGE,
    ProtocolError,
    encode_frame,
    plain,
)

VERSION = "authority/1"
MAX_REQUESTS = 1024
"""Requests in one frame."""
MAX_RESOURCE = 8192
FLAG_HANDLE = 1
"""Bit of `Request.flags`: answer with a handle instead of the value."""
FLAG_WAIT = 2
"""Bit of `Request.flags`: where a person has to approve, answer when they did. The others are 0."""

DONE, REFUSED = 0, 1

_N = Annotated[int, msgspec.Meta(ge=1, le=MAX_INT)]
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
_Capability = Annotated[bytes, msgspec.Meta(max_length=8192)]


class HelloOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`client` names the software; `capability` is for attached clients: it says which run."""

    client: _Name
    capability: _Capability | None = None


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=0, forbid_unknown_fields=True):
    """A client's first message."""

    version: str
    options: HelloOptions


class Request(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One request. `arguments` are bytes still (a view of the frame): `checked_arguments` reads
    them. `n` rises strictly on a stream; a gate refuses a request with flags it does not know.
    """

    n: _N
    effect: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    resource: Any
    arguments: msgspec.Raw
    capability: _Capability | None
    flags: Annotated[int, msgspec.Meta(ge=0, le=255)]


class _Requests(msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True):
    requests: list[Request]


class WelcomeOptions(msgspec.Struct, frozen=True):
    """The run, the largest frame (bytes), the folder for relative paths, and how many requests may
    be under way at one time. A client ignores keys that it does not know.
    """

    run: str
    frame: Annotated[int, msgspec.Meta(ge=1024, le=MAX_INT)]
    cwd: str
    pipeline: Annotated[int, msgspec.Meta(ge=1, le=MAX_INT)]


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """The gate's answer to a `Hello`."""

    options: WelcomeOptions


class Reply(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """`status` DONE: `body` is the value. REFUSED: `body` is a `Refused`.

    `seq` and `hash` (32 bytes) are the receipt: the entry of the log on which the answer rests.
    None and empty when it has no entry of its own.
    """

    n: _N
    status: Annotated[int, msgspec.Meta(ge=DONE, le=REFUSED)]
    seq: Annotated[int, msgspec.Meta(ge=0, le=MAX_INT)] | None
    hash: Annotated[bytes, msgspec.Meta(max_length=32)]
    body: Any


class Refused(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The body of a refusal: `number` counts the run's refusals, `rule` only if the policy says."""

    code: str
    layer: str
    sentence: str
    number: int
    rule: str | None = None


class _Replies(msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True):
    replies: list[Reply]


class Fatal(msgspec.Struct, frozen=True, array_like=True, tag=2, forbid_unknown_fields=True):
    """The last message on a channel."""

    code: str
    sentence: str


def _no_extension(code: int, _data: memoryview) -> Any:
    raise ValueError(f"extension type {code}")


_encoder = msgspec.msgpack.Encoder()
_client_decoder = msgspec.msgpack.Decoder(Hello | _Requests)
_server_decoder = msgspec.msgpack.Decoder(Welcome | _Replies | Fatal, ext_hook=_no_extension)


def decode_client_message(payload: bytes) -> Hello | list[Request]:
    """What a client said. Raises ProtocolError; the gate answers it with `encode_fatal`."""
    if payload[:2] == b"\x92\x01":
        count = _array_size(payload, 2)
        if not 1 <= count <= MAX_REQUESTS:
            raise ProtocolError(INVALID, f"A frame holds from 1 to {MAX_REQUESTS} requests.")
    else:
        # A hello is rare, so it can be held to the strict rules as a whole.
        check_value(payload, floats=False)
    try:
        message: Hello | _Requests = _client_decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ProtocolError(INVALID, f"The message can't be read: {plain(str(error))}.") from error
    if isinstance(message, Hello):
        if message.version != VERSION:
            raise ProtocolError(INVALID, f"This gate speaks {VERSION}.")
        return message
    for request in message.requests:
        # msgspec has no union of text and bytes: a name that is not UTF-8 comes as bytes.
        resource = request.resource
        if type(resource) not in {str, bytes} or len(resource) > MAX_RESOURCE:
            raise ProtocolError(INVALID, "A resource is text or bytes, and not too long.")
    return message.requests


def decode_server_message(payload: bytes) -> Welcome | list[Reply] | Fatal:
    """What a gate said. Raises ProtocolError."""
    try:
        message: Welcome | _Replies | Fatal = _server_decoder.decode(payload)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ProtocolError(
            INVALID, f"The gate's message can't be read: {plain(str(error))}."
        ) from error
    return message.replies if isinstance(message, _Replies) else message


def decode_refused(body: Any) -> Refused:
    """The body of a refused reply. Raises ProtocolError."""
    try:
        return msgspec.convert(body, Refused)
    except msgspec.ValidationError as error:
        raise ProtocolError(
            INVALID, f"The gate's refusal can't be read: {plain(str(error))}."
        ) from error


def encode_hello(client: str, capability: bytes | None = None) -> bytes:
    """`client` is the name that the client gives itself; `capability` the one of all its requests."""
    return _encoder.encode(Hello(VERSION, HelloOptions(client, capability)))


def encode_welcome(run: str, cwd: str, pipeline: int, frame: int = MAX_FRAME) -> bytes:
    """See `WelcomeOptions`."""
    return _encoder.encode(Welcome(WelcomeOptions(run, frame, cwd, pipeline)))


def encode_requests(requests: Sequence[Request]) -> bytes:
    """Several requests in one message."""
    return _encoder.encode(_Requests(list(requests)))


def encode_arguments(arguments: dict[str, Any]) -> msgspec.Raw:
    """Arguments for a `Request`. Raises ProtocolError for values that MessagePack can't hold."""
    try:
        return msgspec.Raw(_encoder.encode(arguments))
    except (TypeError, UnicodeError, OverflowError, RecursionError) as error:
        raise ProtocolError(
            INVALID, f"The arguments can't be encoded: {plain(str(error))}."
        ) from error


def encode_replies(replies: Sequence[Reply]) -> bytes:
    """One message; `reply_frames` keeps within the size of a frame."""
    return _encoder.encode(_Replies(list(replies)))


def reply_frames(stream: int, replies: Sequence[Reply], max_frame: int = MAX_FRAME) -> list[bytes]:
    """The replies in as few halvings as fit. Raises ProtocolError when one alone is too large."""
    payload = encode_replies(replies)
    if len(payload) + 4 <= max_frame:
        return [encode_frame(stream, payload)]
    if len(replies) == 1:
        raise ProtocolError(TOO_LARGE, f"A reply does not fit into a frame of {max_frame} bytes.")
    half = len(replies) // 2
    return [
        *reply_frames(stream, replies[:half], max_frame),
        *reply_frames(stream, replies[half:], max_frame),
    ]


def encode_fatal(code: str, sentence: str) -> bytes:
    """The last message of a stream that broke the rules."""
    return _encoder.encode(Fatal(code, sentence))


def _array_size(data: bytes, at: int) -> int:
    """The number of elements that an array header announces, -1 if there is none."""
    tag = data[at] if at < len(data) else 0
    if 0x90 <= tag <= 0x9F:
        return tag & 0x0F
    width = {0xDC: 2, 0xDD: 4}.get(tag, 0)
    if not width or len(data) < at + 1 + width:
        return -1
    return int.from_bytes(data[at + 1 : at + 1 + width], "big")
