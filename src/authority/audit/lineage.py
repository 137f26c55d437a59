"""Lineage: from a refused argument back to the bytes that shaped it. Read from a log, nothing else.

Rules
- A *step* is one argument and one place that shaped it: the entry in which its bytes came (an outcome),
  the call that brought them, and where in the kept bytes of that answer they stand, as far as that can
  be told. A part that a handle stands for has exactly one place, and the arguments of that handle's
  own call are steps further back.
- What a program wrote after it had read untrusted words may stem from any of them. For each source
  there is the entry that brought it first, with each argument that it holds word for word; where it
  holds none, with the longest stretch of its bytes that an argument repeats.
- Bytes are those of the body that the entry commits to (`result`); what is sealed is opened if its key
  is at hand, and what is not kept has no range. Raw bytes are kept in base64: a range in them counts
  what they are, and `field` says where they stand.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator
from difflib import SequenceMatcher
from typing import Any

import msgspec

from authority.audit import query
from authority.audit.errors import LogError
from authority.audit.store import ContentStore
from authority.kernel import pointers
from authority.kernel.pointers import Malformed, Unfit

Entry = dict[str, Any]
SHARED = 6
"""The fewest characters in a row that an argument and an answer share by more than chance."""
SEARCHED = 64 * 1024
DEPTH = 16
AROUND = 40
"""How many bytes on each side of a stretch are shown with it."""
RAW = {"fs.read": "data", "http.request": "body", "msg.receive": "data"}
"""The member of an answer that is raw bytes, by effect."""
_json = msgspec.json.Encoder().encode


class Step(msgspec.Struct, frozen=True):
    """See above. `start` and `end` are -1 where the bytes are not known; `depth` counts from the
    refused argument back; `text` is what stands there, `before` and `after` what is around it, `at` a
    pointer into the arguments."""

    depth: int
    argument: str
    at: str
    source: str
    entry: int
    call: int
    effect: str
    resource: str
    handle: str = ""
    path: str = ""
    field: str = ""
    start: int = -1
    end: int = -1
    text: str = ""
    before: str = ""
    after: str = ""


class Place(msgspec.Struct, frozen=True):
    """Where in an answer something stands; see `Step`."""

    field: str = ""
    start: int = -1
    end: int = -1
    text: str = ""
    before: str = ""
    after: str = ""

    @staticmethod
    def of(data: bytes, start: int, end: int, field: str = "") -> Place:
        """This stretch, with a little of what is around it."""
        around = data[max(start - AROUND, 0) : start], data[end : end + AROUND]
        before, after = (part.decode("utf-8", "replace") for part in around)
        return Place(field, start, end, _shown(data[start:end]), before, after)


class Lineage:
    """A log's entries, as far as lineage needs them. Reads the log up to `last`."""

    def __init__(
        self, directory: str | os.PathLike[str], store: ContentStore | None, last: int
    ) -> None:
        self._store = store
        self._by_seq: dict[int, Entry] = {}
        self._brought: dict[str, dict[str, int]] = {}
        self._handles: set[int] = set()
        for entry in query.read(directory):
            if entry["seq"] > last:
                break
            if entry["kind"] in {"admit", "outcome", "denied", "chunk", "tally", "run.start"}:
                self._take(entry)

    def _take(self, entry: Entry) -> None:
        self._by_seq[entry["seq"]] = entry
        if entry["kind"] == "admit" and entry.get("handle"):
            self._handles.add(entry["seq"])
        reads = entry["kind"] in {"outcome", "chunk", "tally", "run.start"}
        if reads and entry.get("of") not in self._handles:
            brought = self._brought.setdefault(entry["run"], {})
            for source in entry.get("sources", ()):
                brought.setdefault(source, entry["seq"])

    def of(self, seq: int) -> list[Step]:
        """The steps behind a refused (or admitted) request, nearest first."""
        entry = self._by_seq.get(seq)
        if entry is None or entry["kind"] not in {"denied", "admit"}:
            raise LogError(f"entry {seq} is no request")
        return list(self._steps(entry, 0, set()))

    def _steps(self, entry: Entry, depth: int, seen: set[int]) -> Iterator[Step]:
        if entry["seq"] in seen or depth > DEPTH:
            return
        seen.add(entry["seq"])
        for part in entry.get("parts", ()):
            yield from self._of_part(part, depth, seen)
        brought = self._brought.get(entry["run"], {})
        tainted = {source: at for source, at in brought.items() if at < entry["seq"]}
        if tainted:
            yield from self._of_words(entry, tainted, depth)

    def _of_part(self, part: dict[str, Any], depth: int, seen: set[int]) -> Iterator[Step]:
        born = self._by_seq.get(part.get("born", -1))
        call = self._by_seq.get(born.get("of", -1)) if born is not None else None
        if born is None:
            return
        place = self._place(born, call, part.get("path", ""))
        yield Step(
            depth=depth,
            argument=part["argument"],
            at=part["at"],
            source=", ".join(born.get("sources", ())),
            entry=born["seq"],
            call=call["seq"] if call else -1,
            effect=(call or born).get("effect", ""),
            resource=(call or born).get("resource", ""),
            handle=part["handle"],
            path=part.get("path", ""),
            **msgspec.structs.asdict(place),
        )
        if call is not None:
            yield from self._steps(call, depth + 1, seen)

    def _place(self, born: Entry, call: Entry | None, path: str) -> Place:
        """Where in the kept bytes of an answer a field of it stands."""
        data = self.body(born.get("result"))
        if data is None:
            return Place()
        effect = (call or born).get("effect", "")
        if path == f"/{RAW.get(effect)}":
            raw, field = _raw(effect, data)
            return Place.of(raw, 0, len(raw), field)
        inside = "/result" if effect == "tool.call" else ""
        try:
            answer = msgspec.json.decode(data)
            start = _offset(answer, pointers.steps(inside + path))
            wanted = _json(pointers.project(answer, inside + path))
        except (msgspec.DecodeError, Unfit, Malformed):
            return Place.of(data, 0, len(data))
        if data[start : start + len(wanted)] != wanted:
            return Place.of(data, 0, len(data))
        return Place.of(data, start, start + len(wanted))

    def _of_words(self, entry: Entry, tainted: dict[str, int], depth: int) -> Iterator[Step]:
        arguments = self.body(entry.get("filled") or entry.get("arguments"))
        of_handles = {part["at"] for part in entry.get("parts", ())}
        words = [
            (at, word)
            for at, word in (_words(arguments) if arguments else ())
            if not any(at.startswith(part) for part in of_handles)
        ]
        for source, seq in sorted(tainted.items(), key=lambda item: item[1]):
            brought = self._by_seq[seq]
            call = self._by_seq.get(brought.get("of", -1))
            effect = (call or brought).get("effect", "")
            resource = (call or brought).get("resource", "")
            if brought["kind"] == "run.start":  # from its parent, or from who handed it its task
                effect, resource = brought["kind"], f"run:{brought['run']}"
            kept = self.body(brought.get("result") or brought.get("body")) or b""
            data, field = _raw(effect, kept)
            for at, place in _found(words, data, field):
                yield Step(
                    depth=depth,
                    argument=_argument(entry.get("effect", ""), at),
                    at=at,
                    source=source,
                    entry=seq,
                    call=call["seq"] if call else -1,
                    effect=effect,
                    resource=resource,
                    **msgspec.structs.asdict(place),
                )

    def body(self, body: dict[str, Any] | None) -> bytes | None:
        """The bytes of a body, or None where they are not at hand."""
        return body_of(self._store, body)


def body_of(store: ContentStore | None, body: dict[str, Any] | None) -> bytes | None:
    """The bytes that an entry's body stands for, or None where they are not at hand."""
    if not body:
        return None
    kept = body.get("kept", "digest")
    if kept == "inline":
        return str(body.get("text", "")).encode()
    if kept == "base64":
        return base64.b64decode(body.get("text", ""))
    read: dict[str, Callable[[str], bytes]] = {}
    if store is not None:
        read = {"store": store.get, "sealed": store.unseal}
    try:
        return read[kept](body["digest"]) if kept in read else None
    except (LogError, OSError, ValueError):
        return None


def _raw(effect: str, data: bytes) -> tuple[bytes, str]:
    """The raw bytes of an answer and where they stand in it, or its kept bytes and nothing."""
    name = RAW.get(effect)
    if name is None:
        return data, ""
    try:
        return base64.b64decode(msgspec.json.decode(data)[name], validate=True), f"/{name}"
    except (msgspec.DecodeError, ValueError, TypeError, KeyError):
        return data, ""


def _found(words: list[tuple[str, str]], data: bytes, field: str) -> Iterator[tuple[str, Place]]:
    """Which of the arguments' texts stand in an answer, and where; at least one, for the source."""
    whole = []
    for at, word in words:
        raw = word.encode()
        for form in (raw, _json(word)[1:-1]):
            if len(raw) >= SHARED and (start := data.find(form)) >= 0:
                whole.append((at, Place.of(data, start, start + len(form), field)))
                break
    if whole:
        yield from whole
        return
    best, size = ("", Place()), 0
    for at, word in words:
        shared, start = _shared(word, data)
        if shared > size:
            best, size = (at, Place.of(data, start, start + shared, field)), shared
    yield best


def _offset(value: Any, names: tuple[str, ...]) -> int:
    """Where in a value's JSON the named field begins. Raises `Unfit`."""
    at = 0
    for name in names:
        if isinstance(value, dict):
            at += 1
            for key, item in value.items():
                at += len(_json(key)) + 1
                if key == name:
                    break
                at += len(_json(item)) + 1
            else:
                raise Unfit("there is no such field")
            value = value[name]
        elif isinstance(value, list) and name.isdigit() and int(name) < len(value):
            at += 1 + sum(len(_json(item)) + 1 for item in value[: int(name)])
            value = value[int(name)]
        else:
            raise Unfit("there is no such field")
    return at


def _words(data: bytes) -> Iterator[tuple[str, str]]:
    """Every text in the arguments, and where it stands."""
    try:
        tree = msgspec.json.decode(data)
    except msgspec.DecodeError:
        return
    yield from _texts(tree, ())


def _texts(value: Any, at: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, (*at, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _texts(item, (*at, str(number)))
    elif isinstance(value, str | int) and not isinstance(value, bool):
        yield pointers.pointer_of(at), str(value)


def _shared(word: str, data: bytes) -> tuple[int, int]:
    """The size and the beginning (in bytes) of the longest stretch that both have; (0, -1) for none."""
    raw = word.encode()
    if len(raw) >= 2 and (at := data.find(raw)) >= 0:
        return len(raw), at
    one, other = raw[:SEARCHED].decode("latin-1"), data[:SEARCHED].decode("latin-1")
    found = SequenceMatcher(None, one, other, autojunk=False).find_longest_match()
    return (found.size, found.b) if found.size >= SHARED else (0, -1)


def _argument(effect: str, at: str) -> str:
    names = pointers.steps(at)
    inner = effect in {"tool.call", "mcp.prompt", "model.chat"}
    return names[1] if inner and len(names) > 1 else names[0] if names else ""


def _shown(data: bytes) -> str:
    text = data.decode("utf-8", "replace")
    return text if len(text) <= 200 else f"{text[:199]}…"
