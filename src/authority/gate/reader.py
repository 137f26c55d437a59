"""Reading a request: from what a client sent to the kernel's `Request` and `Facts`.

Rules
- Nothing is guessed. What can't be read (unknown effect, wrong argument, a path that has no canonical
  form, a token that is no token) becomes a `Problem`, which `decide` turns into a denial that names
  the stage; the request that is logged then shows what was asked, escaped.
- The token's MAC is checked here, with the gate's keys, because the kernel holds none: `Facts.mac_ok`.
  A verified token is remembered by its bytes. A MAC does not expire; time, scope and revocation are
  asked anew by every decision.
- Where handles stand in the arguments, their canonical bytes name the handles. Their values never
  change, so these bytes are exact; what comes of them is `hidden`'s part.
- The arguments' canonical bytes are sorted JSON of the decoded Struct (bytes as base64), which is
  what the log keeps and what the request's digest covers: two spellings of one request are one.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from authority.errors import AuthorityError
from authority.gate import clock
from authority.kernel import capabilities, pointers, resources, value_types, values
from authority.kernel.canonical import MAX_INTEGER, printable
from authority.kernel.capabilities import MacKey, Token, TokenError
from authority.kernel.codes import Code, Layer
from authority.kernel.entries import Body
from authority.kernel.facts import Facts, Problem, Request, numbers, request_digest
from authority.kernel.handles import Part
from authority.kernel.models import EFFECTS as MODEL_EFFECTS
from authority.kernel.pointers import Malformed, Unfit
from authority.kernel.requests import EFFECTS, FsRename, HttpRequest, Output
from authority.kernel.resources import Resource
from authority.protocol import FLAG_HANDLE, FLAG_WAIT, checked_arguments
from authority.protocol import Request as WireRequest

INLINE_LIMIT = 1024
"""Bodies up to this many bytes stand in the entry itself."""
OUTPUT_INLINE_LIMIT = 64 * 1024
SHOWN_LIMIT = 512
TOKEN_CACHE = 4096

_json = msgspec.json.Encoder(order="sorted").encode
_as_given = msgspec.json.Encoder().encode
_decoders = {name: msgspec.msgpack.Decoder(spec.arguments).decode for name, spec in EFFECTS.items()}
_decode = msgspec.msgpack.Decoder().decode
_INNER = frozenset({"tool.call", "mcp.prompt", *MODEL_EFFECTS})
"""Effects whose arguments lie one level deeper."""
_FLOATS = frozenset({"tool.call", "value.reveal", "value.compute", *MODEL_EFFECTS})
"""Effects whose arguments are somebody else's JSON, kept as it came."""
_VERBS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY"})


class Asked(msgspec.Struct):
    """One request as read: for the kernel, and the canonical bytes of its arguments.

    With `refs` handles stand in its arguments: `tree` is what was sent, and the request's own
    arguments have nothing in their place yet. `wait`: for a person's approval, if it wants one.
    """

    request: Request
    facts: Facts
    arguments: bytes
    capability: bytes = b""
    tree: Any = None
    refs: tuple[values.Ref, ...] = ()
    wait: bool = False


class Reader:
    """Reads requests with the gate's keys. Holds no state but a bounded cache."""

    def __init__(self, keys: Mapping[str, MacKey], find_canary: Callable[[bytes], str]) -> None:
        self._keys = keys
        self._find_canary = find_canary
        self._tokens: dict[bytes, tuple[Token, bool]] = {}

    def token(self, raw: bytes) -> tuple[Token | None, bool]:
        """The parsed token and whether its MAC holds; (None, False) for what is no token."""
        known = self._tokens.get(raw)
        if known is not None:
            return known
        try:
            token = capabilities.parse(raw)
        except TokenError:
            return None, False
        ok = capabilities.verify(token, self._keys.get(token.kid))
        if ok:
            if len(self._tokens) >= TOKEN_CACHE:
                self._tokens.clear()
            self._tokens[raw] = (token, ok)
        return token, ok

    def read(
        self, run: str, cwd: str, stream: int, wire: WireRequest, last_n: int, time: int
    ) -> Asked:
        """What `wire` asks for. `last_n` is the highest number seen on this stream."""
        effect = wire.effect
        problem: Problem | None = None
        resource: Resource | None = None
        target: Resource | None = None
        arguments: Any = None
        verb = ""
        tree: Any = None
        refs: tuple[values.Ref, ...] = ()
        raw: bytes = bytes(wire.arguments)
        spec = EFFECTS.get(effect)
        if spec is None or spec.internal:
            problem = _bad(f"no effect {printable(effect, 64)!r}")
        else:
            try:
                raw = checked_arguments(raw, floats=effect in _FLOATS)
                if values.mentions(raw):
                    tree = _decode(raw)
                    refs = values.refs(effect, tree)
                if refs:
                    arguments = filled(effect, tree, {ref.at: "" for ref in refs})
                    raw = _json(tree)
                else:
                    arguments = _decoders[effect](raw)
                    raw = _json(arguments)
                verb = _verb(arguments)
                resource = resources.parse(effect, wire.resource, cwd=cwd)
                if effect == "fs.rename":
                    target = resources.parse(effect, arguments.to, cwd=cwd)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                problem = _bad(f"{effect}: {printable(str(error), 200)}")
            except AuthorityError as error:
                problem = _bad(f"{effect}: {error.message}")
            except (Malformed, Unfit) as error:
                problem = _bad(f"{effect}: {error}")
        shown = resource.text if resource else printable(wire.resource, SHOWN_LIMIT)
        problem = problem or _flags(wire.flags, effect, refs)
        if wire.n <= last_n:
            problem = Problem(
                Code.REPLAY, Layer.SEQUENCE, f"number {wire.n} after number {last_n} on its stream"
            )
        token, mac_ok = (None, False)
        if wire.capability:
            token, mac_ok = self.token(bytes(wire.capability))
            if token is None and problem is None:
                problem = Problem(Code.CAP_INVALID, Layer.CAPABILITY, "not a capability token")
        request = Request(
            run=run,
            stream=stream,
            n=wire.n,
            effect=effect if spec else printable(effect, 64),
            shown=shown,
            digest=request_digest(effect, shown, verb, raw, target.text if target else ""),
            resource=resource,
            target=target,
            arguments=arguments,
            verb=verb,
            token=token,
            handle=bool(wire.flags & FLAG_HANDLE),
            parts=tuple(_part(effect, ref) for ref in refs),
        )
        amounts = numbers(spec, arguments) if spec and arguments is not None else {}
        for part in request.parts:
            amounts.pop(part.argument, None)
        facts = Facts(
            time=time,
            mac_ok=mac_ok,
            problem=problem,
            numbers=amounts,
            looked_up=self._looked_up(wire.arguments),
            body=short_body(raw),
        )
        wait = bool(wire.flags & FLAG_WAIT)
        return Asked(request, facts, raw, bytes(wire.capability or b""), tree, refs, wait)

    def own(
        self,
        run: str,
        cwd: str,
        n: int,
        effect: str,
        raw: str | bytes | Resource,
        arguments: msgspec.Struct | None,
        verb: str,
        capability: bytes,
        problem: Problem | None = None,
    ) -> Asked:
        """What a service of the gate asks for a run, under the run's own `capability`.

        `problem` is what the service itself found wrong; then nothing else has to be whole.
        """
        resource: Resource | None = None
        if isinstance(raw, Resource):
            resource, shown = raw, raw.text
        else:
            shown = printable(raw, SHOWN_LIMIT)
            try:
                resource = resources.parse(effect, raw, cwd=cwd)
                shown = resource.text
            except AuthorityError as error:
                problem = problem or _bad(f"{effect}: {error.message}")
        target: Resource | None = None
        if problem is None and isinstance(arguments, FsRename):
            try:
                target = resources.parse(effect, arguments.to, cwd=cwd)
            except AuthorityError as error:
                problem = _bad(f"{effect}: {error.message}")
        spec = EFFECTS.get(effect)
        data = _json(arguments) if arguments is not None else b""
        if arguments is not None and not _writable(arguments):
            problem, arguments = problem or _bad(f"{effect}: a number is out of range"), None
        token, mac_ok = self.token(capability)
        request = Request(
            run=run,
            stream=0,
            n=n,
            effect=effect,
            shown=shown,
            digest=request_digest(effect, shown, verb, data, target.text if target else ""),
            resource=resource,
            target=target,
            arguments=arguments,
            verb=verb,
            token=token,
        )
        facts = Facts(
            time=clock.wall(),
            mac_ok=mac_ok,
            problem=problem,
            numbers=numbers(spec, arguments) if spec and arguments is not None else {},
            looked_up=self._looked_up(data),
            body=short_body(data),
        )
        return Asked(request, facts, data, capability)

    def printed(self, run: str, fd: int, data: bytes, n: int, capability: bytes) -> Asked:
        """What a program printed, as a request under the run's own `capability`."""
        name = "output:stderr" if fd == 2 else "output:stdout"
        token, ok = self.token(capability)
        request = Request(
            run=run,
            stream=0,
            n=n,
            effect="output",
            shown=name,
            digest=request_digest("output", name, "", data),
            resource=resources.parse("output", name, cwd=None),
            arguments=Output(data),
            token=token,
        )
        facts = Facts(clock.wall(), mac_ok=ok, body=short_body(data, OUTPUT_INLINE_LIMIT))
        return Asked(request, facts, data)

    def _looked_up(self, sent: bytes | msgspec.Raw) -> dict[str, Any]:
        found = self._find_canary(bytes(sent))
        return {"canary": found} if found else {}


class Own:
    """Numbers and reads what one run's services ask under the run's own capability."""

    def __init__(self, reader: Reader, run: str, cwd: str, capability: bytes) -> None:
        self._reader = reader
        self._run = run
        self._cwd = cwd
        self._capability = capability
        self._n = 0

    def asked(
        self,
        effect: str,
        resource: str | bytes | Resource,
        arguments: msgspec.Struct | None,
        verb: str = "",
        problem: Problem | None = None,
    ) -> Asked:
        """See `Reader.own`."""
        self._n += 1
        return self._reader.own(
            self._run, self._cwd, self._n, effect, resource, arguments, verb,
            self._capability, problem,
        )  # fmt: skip


def filled(effect: str, tree: Any, found: Mapping[str, Any]) -> Any:
    """The arguments with the values of handles. Raises `Unfit`, also for what is no argument then."""
    try:
        return msgspec.convert(
            values.fill(effect, tree, found), EFFECTS[effect].arguments, builtin_types=(bytes,)
        )
    except msgspec.ValidationError as error:
        raise Unfit(printable(str(error), 200)) from None


def _part(effect: str, ref: values.Ref) -> Part:
    names = pointers.steps(ref.at)
    argument = names[1] if effect in _INNER else names[0]
    typed = ref.schema is not None
    return Part(
        at=ref.at,
        argument=argument,
        handle=ref.handle,
        path=ref.path,
        typed=typed,
        kind=value_types.kind_of(ref.schema, ref.within) if typed else "",
        bits=(value_types.bits(ref.schema, ref.within) or 0) if typed else 0,
        whole=ref.whole,
    )


def _flags(flags: int, effect: str, refs: tuple[values.Ref, ...]) -> Problem | None:
    if flags & ~(FLAG_HANDLE | FLAG_WAIT):
        return _bad("a flag that this gate does not know")
    if flags & FLAG_HANDLE and effect not in values.WANTED:
        return _bad(f"{printable(effect, 64)} is not answered with a handle")
    if refs and not flags & FLAG_HANDLE:
        return _bad("a request with handles in it is answered with a handle: ask for one")
    return None


def _writable(arguments: msgspec.Struct) -> bool:
    """Whether an entry can hold every number of them; the kernel of a run may name larger ones."""
    values = msgspec.structs.asdict(arguments).values()
    return all(abs(value) <= MAX_INTEGER for value in values if isinstance(value, int))


def _bad(reason: str) -> Problem:
    return Problem(Code.SCHEMA_INVALID, Layer.SCHEMA, reason)


class VerbError(AuthorityError):
    """An HTTP method that the gate does not speak."""


def _verb(arguments: Any) -> str:
    if not isinstance(arguments, HttpRequest):
        return ""
    if arguments.method not in _VERBS:
        raise VerbError(f"no method {printable(arguments.method, 32)!r}")
    return arguments.method


def short_body(data: bytes, limit: int = INLINE_LIMIT) -> Body:
    """A body that the entry itself keeps when it is short, and names by digest when it is not."""
    digest = hashlib.sha256(data).hexdigest()
    if len(data) > limit:
        return Body(digest, len(data))
    try:
        return Body(digest, len(data), "inline", data.decode())
    except UnicodeDecodeError:
        return Body(digest, len(data), "base64", base64.b64encode(data).decode())


def value_bytes(value: Any) -> bytes:
    """The bytes of an answer, as the log keeps them. Members stand in the order in which the program
    gets them, since it can see that."""
    return _as_given(value)
