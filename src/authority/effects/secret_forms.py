"""Secrets in answers: what they look like, and how they are replaced, in one piece or in a stream.

Pure. Rules
- A secret is 8 to 8,192 printable ASCII characters. A shorter one could not be found in an answer
  without finding it everywhere, so it is not used at all.
- It is looked for as it is, in any letter case, escaped for URLs, JSON and HTML, in hexadecimal, and
  in base64 (both alphabets) at any offset. That stops a server that echoes; it can't stop one that
  helps the run on purpose, by spelling the secret backwards, say.
- Places that overlap become one replacement.
- A `Scrubber` gives, whatever the pieces, what `redact` gives for the whole. It keeps back only the
  end of a piece that could be the beginning of a secret: nothing of it is passed on before it is
  known to be something else, and a stream without secrets is not delayed.
"""

from __future__ import annotations

import base64
import functools
import html
import json
import re
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import quote

_USABLE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{6,8190})[\x21-\x7e]\Z")


class Secret(NamedTuple):
    """What a secret looks like in an answer, lower case, and what stands there instead."""

    shown: bytes
    forms: tuple[bytes, ...]


def usable(secret: str) -> bool:
    """Whether a secret is one that could be found again."""
    return bool(_USABLE.match(secret))


def spelled(value: str, shown: str) -> Secret:
    """A usable secret as it is looked for; `shown` is put in its place."""
    return Secret(shown.encode("ascii"), _forms(value))


def redact(data: bytes, secrets: Sequence[Secret]) -> tuple[bytes, int]:
    """`data` with each secret replaced, and how many places that were."""
    scrubber = Scrubber(secrets)
    return scrubber.feed(data) + scrubber.end(), scrubber.places


class Scrubber:
    """Replaces secrets in a stream. `places` counts the replacements so far."""

    def __init__(self, secrets: Sequence[Secret]) -> None:
        self._secrets = tuple(secrets)
        self._longest = max((len(form) for each in secrets for form in each.forms), default=1)
        self._held = b""
        self._covered = 0  # bytes at the beginning of _held that are replaced already
        self.places = 0

    def feed(self, data: bytes) -> bytes:
        """What may be passed on after `data` came."""
        whole = self._held + data
        lower = whole.lower()
        return self._pass(whole, lower, self._doubtful(lower))

    def end(self) -> bytes:
        """The rest, when nothing more comes."""
        whole = self._held
        return self._pass(whole, whole.lower(), len(whole))

    def _pass(self, whole: bytes, lower: bytes, cut: int) -> bytes:
        """Everything before `cut`, replaced; the rest is held."""
        parts: list[bytes] = []
        at = self._covered
        for first, last, shown in self._spans(lower):
            if first >= cut:
                break
            if first >= at:
                parts += (whole[at:first], shown)
                self.places += 1
            at = max(at, last)
        parts.append(whole[at:cut])
        self._held = whole[cut:]
        self._covered = max(0, at - cut)
        return b"".join(parts)

    def _spans(self, lower: bytes) -> list[tuple[int, int, bytes]]:
        spans = []
        for each in self._secrets:
            for form in each.forms:
                start = lower.find(form)
                while start >= 0:
                    spans.append((start, start + len(form), each.shown))
                    start = lower.find(form, start + 1)
        return sorted(spans)

    def _doubtful(self, lower: bytes) -> int:
        """Where the first beginning of a secret stands that goes on beyond the end."""
        cut = len(lower)
        begin = max(0, cut - self._longest + 1)
        for each in self._secrets:
            for form in each.forms:
                at = lower.find(form[:1], max(begin, len(lower) - len(form) + 1), cut)
                while at >= 0:
                    if form.startswith(lower[at:]):
                        cut = at
                        break
                    at = lower.find(form[:1], at + 1, cut)
        return cut


@functools.lru_cache(maxsize=64)
def _forms(value: str) -> tuple[bytes, ...]:
    raw = value.encode("ascii")
    forms = {
        raw,
        quote(value, safe="").encode(),
        json.dumps(value)[1:-1].encode(),
        json.dumps(value)[1:-1].replace("/", "\\/").encode(),
        html.escape(value).encode(),
        raw.hex().encode(),
    }
    for lead in range(3):
        # In base64, where in a group of three the secret begins decides what it looks like. The
        # first and last character also hold bits of what stands beside it, so they are left out.
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            text = encode(b"\0" * lead + raw).rstrip(b"=")
            forms.add(text[(0, 2, 3)[lead] : (lead + len(raw)) * 8 // 6])
    return tuple(sorted(form.lower() for form in forms))
