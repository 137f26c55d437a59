"""What an agent uses: `connect()` gives a `Gate`, and every effect is a call on it.

    from authority.agent import connect, Denied

    gate = connect()
    text = gate.read_text("docs/plan.txt")
    try:
        gate.write("out/report.txt", text.upper())
    except Denied as denied:
        print(denied.code, denied.sentence)

`Gate.call` is the one primitive; the other methods are short forms of it. Every method blocks until
the gate answers and raises `Denied`, or a `GateError` when there is no answer. Threads may share a
`Gate`. `batch()` sends several calls in one frame.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, overload

import msgspec

from authority import protocol
from authority.agent.around import Around
from authority.agent.calling import Capability
from authority.agent.channel import Channel, Draft, Pending
from authority.agent.errors import BadReply, BadRequest, Denied, NoChannel, Receipt, Wait
from authority.agent.fields import field as _field
from authority.agent.fields import map_of
from authority.agent.fields import receipt_of as _receipt
from authority.agent.fields import token_bytes as _token_bytes
from authority.agent.fields import utf8_or_bytes as _utf8_or_bytes
from authority.agent.filing import Filing, Given, given
from authority.agent.handles import Handle, Made, handle_of, is_handle, plain
from authority.agent.planned import Planned
from authority.agent.values import HttpResponse, ModelAnswer

Headers = Mapping[str, str] | Sequence[tuple[str, str]]
MAX_BYTES = 1024 * 1024
_NO_ARGUMENTS = msgspec.Raw(b"\x80")


class Answer:
    """A call of a batch. `result()` gives its value, or raises what a call alone would raise."""

    __slots__ = ("_gate", "_handle", "_pending")

    def __init__(self, gate: Gate, handle: bool = False) -> None:
        self._gate = gate
        self._pending: Pending | None = None
        self._handle = handle

    @property
    def sent(self) -> bool:
        return self._pending is not None

    def result(self) -> Any:
        """The value. Raises Denied or GateError, and BadRequest if the batch was not sent."""
        return self._gate._value(self._reply(), self._handle)

    @property
    def receipt(self) -> Receipt | None:
        """The entry on which the answer rests."""
        return _receipt(self._reply())

    def _reply(self) -> protocol.Reply:
        if self._pending is None:
            raise BadRequest("this batch was not sent", "ask for results after its `with` block")
        return self._gate._channel.wait(self._pending)


class Batch:
    """Calls that leave in as few frames as possible when the `with` block ends.

    The block's end waits for all answers; a refusal is raised by its own `Answer.result()` only.
    If the block raises, nothing is sent.
    """

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._drafts: list[Draft] = []
        self._answers: list[Answer] = []
        self._sent = False

    def call(
        self,
        effect: str,
        resource: str | bytes,
        arguments: Mapping[str, Any] | None = None,
        capability: str | bytes | None = None,
        handle: bool = False,
    ) -> Answer:
        """As `Gate.call`, but later."""
        if self._sent:
            raise BadRequest("this batch was sent already", "make a new one")
        draft = self._gate._draft(effect, resource, arguments, capability, handle)
        self._drafts.append(draft)
        self._answers.append(Answer(self._gate, bool(draft.flags & protocol.FLAG_HANDLE)))
        return self._answers[-1]

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sent = True
        if kind is not None or not self._drafts:
            return
        channel = self._gate._channel
        waiting = channel.submit(self._drafts)
        for answer, pending in zip(self._answers, waiting, strict=True):
            answer._pending = pending
        for pending in waiting:
            self._gate._note(channel.wait(pending))


class Gate(Around, Filing, Planned):
    """A connection to the gate, for one run. `run` is its id, `cwd` where relative paths begin."""

    def __init__(self, channel: Channel, capability: bytes | None) -> None:
        self._channel = channel
        self._capability = capability
        self.run = channel.run
        self.cwd = channel.cwd
        self.last_receipt: Receipt | None = None
        """The entry on which the last answer rests, refusals included."""

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    def call(
        self,
        effect: str,
        resource: str | bytes,
        arguments: Mapping[str, Any] | None = None,
        capability: str | bytes | None = None,
        handle: bool = False,
        wait: Wait = False,
    ) -> Any:
        """Ask for one effect and return its value.

        `capability` (text or bytes, as `attenuate` gives) stands in place of the run's own. `handle`
        asks for a handle in place of the value; a call with handles in its arguments gets one
        anyway. `wait`: where a person has to approve, wait until they have answered; a function is
        called first, with the refusal, and may raise in place of waiting.
        """
        if callable(wait):
            try:
                return self.call(effect, resource, arguments, capability, handle)
            except Denied as denied:
                if denied.code != "E_APPROVAL_REQUIRED":
                    raise
                wait(denied)
        draft = self._draft(effect, resource, arguments, capability, handle, bool(wait))
        (pending,) = self._channel.submit((draft,))
        reply = self._channel.wait(pending)
        self._note(reply)
        return self._value(reply, bool(draft.flags & protocol.FLAG_HANDLE))

    def batch(self) -> Batch:
        """Several calls in one frame: `with gate.batch() as b: a = b.call(…)`, then `a.result()`."""
        return Batch(self)

    def attenuate(self, capability: str | bytes | None = None, **restriction: Any) -> str:
        """A narrower capability as text, made here without the gate.

        The keys are those of a restriction (`resources`, `methods`, `expires`, `count`, `rate`,
        `quotas`, `run_only`, …; docs/protocol.md). Raises TokenError, and BadRequest without any
        capability to narrow.
        """
        from authority import tokens

        token = self._token(capability)
        if token is None:
            raise BadRequest("there is no capability to narrow", "give one to connect()")
        narrower = tokens.restriction_from_plain(restriction)
        nonce = os.urandom(tokens.NONCE_SIZE)
        return tokens.to_text(tokens.attenuate(token, narrower, nonce=nonce))

    # The world

    @overload
    def http(
        self,
        method: str,
        url: str,
        *,
        headers: Headers = (),
        body: bytes | str = b"",
        max_bytes: int = MAX_BYTES,
        capability: Capability = None,
        handle: Literal[False] = False,
        wait: Wait = False,
    ) -> HttpResponse: ...

    @overload
    def http(
        self,
        method: str,
        url: str,
        *,
        headers: Headers = (),
        body: Handle | Made,
        max_bytes: int = MAX_BYTES,
        capability: Capability = None,
        handle: bool = False,
        wait: Wait = False,
    ) -> Handle: ...

    @overload
    def http(
        self,
        method: str,
        url: str,
        *,
        headers: Headers = (),
        body: Given = b"",
        max_bytes: int = MAX_BYTES,
        capability: Capability = None,
        handle: Literal[True],
        wait: Wait = False,
    ) -> Handle: ...

    def http(
        self,
        method: str,
        url: str,
        *,
        headers: Headers = (),
        body: Given = b"",
        max_bytes: int = MAX_BYTES,
        capability: Capability = None,
        handle: bool = False,
        wait: Wait = False,
    ) -> HttpResponse | Handle:
        """One HTTP exchange. Redirects are answers, to be followed by a request of their own.

        With `handle`, or a handle as the body, a handle to the answer: `/status`, `/headers`,
        `/body` and `/url`.
        """
        arguments = {
            "method": method,
            "headers": list(headers.items() if isinstance(headers, Mapping) else headers),
            "body": given(body),
            "max_bytes": max_bytes,
        }
        value = self.call("http.request", url, arguments, capability, handle, wait)
        if isinstance(value, Handle):
            return value
        try:
            return msgspec.convert(value, HttpResponse)
        except msgspec.ValidationError as error:
            raise BadReply(f"the gate's answer to http.request is not valid: {error}") from error

    def tool(
        self,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        capability: Capability = None,
        handle: bool = False,
        wait: Wait = False,
    ) -> Any:
        """Call the tool; its result, or a handle to it. A tool of an MCP server is `SERVER/TOOL`."""
        name = name.replace("/", ".", 1)
        body = {"arguments": dict(arguments or {})}
        value = self.call("tool.call", f"tool:{name}", body, capability, handle, wait)
        return value if isinstance(value, Handle) else _field(value, "result", object)

    @overload
    def model(
        self,
        name: str,
        messages: Sequence[Mapping[str, Any]],
        *,
        api: str = "openai.chat",
        capability: Capability = None,
        handle: Literal[False] = False,
        **options: Any,
    ) -> ModelAnswer: ...

    @overload
    def model(
        self,
        name: str,
        messages: Sequence[Mapping[str, Any]],
        *,
        api: str = "openai.chat",
        capability: Capability = None,
        handle: Literal[True],
        **options: Any,
    ) -> Handle: ...

    def model(
        self,
        name: str,
        messages: Sequence[Mapping[str, Any]],
        *,
        api: str = "openai.chat",
        capability: Capability = None,
        handle: bool = False,
        **options: Any,
    ) -> ModelAnswer | Handle:
        """Ask a model, in one piece. `api` may be `openai.responses` or `anthropic.messages` too.

        `options` are the API's own (`max_tokens`, `tools`, …). Raises Denied, also when the
        vendor could not be reached; an answer of the vendor's that is an error has its `status`.
        With `handle` a handle to the answer: `/text`, `/status` and `/body`. Messages that hold
        handles want it: whether they are read is for the caller to say.
        """
        key = "input" if api == "openai.responses" else "messages"
        request = {"model": name, key: [dict(one) for one in messages], **options}
        body = {"api": api, "request": request}
        if not handle and plain(request)[1]:
            raise BadRequest("messages with handles are answered with one", "say handle=True")
        value = self.call("model.chat", f"model:{name}", body, capability, handle)
        if handle:
            return is_handle(value)
        found = map_of("model.chat", value)
        return ModelAnswer(_field(found, "status", int), _field(found, "body", bytes), api)

    # How a call is made

    def _token(self, capability: str | bytes | None) -> bytes | None:
        if capability is None:
            return self._capability
        return _token_bytes(capability)

    def _draft(
        self,
        effect: str,
        resource: str | bytes,
        arguments: Mapping[str, Any] | None,
        capability: str | bytes | None,
        handle: bool,
        wait: bool = False,
    ) -> Draft:
        if isinstance(resource, str) and not resource.isascii():
            # A name that the operating system gave us may hold bytes that are not UTF-8.
            resource = _utf8_or_bytes(resource)
        raw = _NO_ARGUMENTS
        if arguments:
            sent, held = plain(arguments)
            handle = handle or held
            try:
                raw = protocol.encode_arguments(sent)
            except protocol.ProtocolError as error:
                raise BadRequest(error.sentence) from error
        if not 1 <= len(effect) <= 64 or len(resource) > protocol.MAX_RESOURCE:
            raise BadRequest("the name of the effect or of the resource is too long, or empty")
        flags = (protocol.FLAG_HANDLE if handle else 0) | (protocol.FLAG_WAIT if wait else 0)
        return Draft(effect, resource, raw, self._token(capability), flags)

    def _note(self, reply: protocol.Reply) -> None:
        self.last_receipt = _receipt(reply) or self.last_receipt

    def _value(self, reply: protocol.Reply, handle: bool = False) -> Any:
        if reply.status == protocol.DONE:
            return handle_of(reply.body) if handle else reply.body
        try:
            refused = protocol.decode_refused(reply.body)
        except protocol.ProtocolError as error:
            raise BadReply(error.sentence) from error
        raise Denied(
            refused.code,
            refused.layer,
            reply.seq,
            refused.number,
            refused.sentence,
            refused.rule,
            _receipt(reply),
        )


def connect(
    path: str | None = None,
    capability: str | bytes | None = None,
    *,
    attach: bool = False,
    client: str = "authority.agent",
) -> Gate:
    """Connect to the gate of this run.

    `path` and `capability` come from `AUTHORITY_CHANNEL` and `AUTHORITY_CAPABILITY` unless given.
    `attach` is for a program that no gate started: the capability then says which run it joins.
    Raises NoChannel, GateGone, BadReply, or TokenError for a capability that is none.
    """
    path = path or os.environ.get("AUTHORITY_CHANNEL")
    if not path:
        raise NoChannel(
            "AUTHORITY_CHANNEL is not set, so there is no gate to ask",
            "start the program with `authority run`, or give connect() a path",
        )
    given = capability or os.environ.get("AUTHORITY_CAPABILITY")
    token = _token_bytes(given) if given else None
    if attach and token is None:
        raise NoChannel(
            "an attached program needs a capability",
            "set AUTHORITY_CAPABILITY, or give connect() one",
        )
    return Gate(Channel(path, client=client, capability=token if attach else None), token)
