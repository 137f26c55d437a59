"""Credentials of an unmodified program: a placeholder in the run, the secret put in at the gate.

Pure, but for the random part of a placeholder, which comes from outside. Rules
- Each credential has one placeholder a run, under the variable's name in its environment. It is no
  secret: it opens nothing anywhere.
- A host and port with a credential rule takes no other key. Every header and query parameter that
  may carry one (`Authorization`, `Cookie`, `…-token`, `?access_token=`; `key_names` has the lists)
  is removed unless its value is one of this host's placeholders: alone, behind a scheme word, as
  the policy's `format` has it, or as one half of `Basic` beside a user's name. What was removed is
  told by name. So an allowed host can't be used with an attacker's own account.
- What is judged, logged and committed is the request with placeholders (`clean`). Only what is sent
  holds the secret (`fill`), and only in those places. A placeholder elsewhere (path, body, another
  header) stays a placeholder. A credential that the program did not use is set as the policy says.
- A placeholder in the head of a request to a host that it is not for, in whatever spelling
  `secret_forms` knows, is told by `foreign`: the request is to be refused.
- A host that gets a secret is asked for plain, whole answers (`Accept-Encoding: identity`, no ranges)
  and may give no others. Its `Set-Cookie` is dropped: a session is as good as the secret.
- In every answer secrets are replaced by their placeholders, in headers and, as a stream, in bodies.
- The secret leaves over TLS only, or to a loopback address.
- Not supported: signatures over the request (SigV4, HTTP signatures), client certificates.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple
from urllib.parse import quote, unquote_plus

from authority.compat.key_names import folded_name, is_key_header, is_key_parameter
from authority.effects.base import EffectFailed
from authority.effects.http_secrets import value_of
from authority.effects.secret_forms import Scrubber, redact, spelled, usable
from authority.kernel.addresses import judge_address, shown
from authority.kernel.policy import Policy
from authority.kernel.policy_rules import private_key
from authority.kernel.resources import Resource, parse

Headers = Sequence[tuple[str, str]]

_DROPPED_ASKING: Final = frozenset({"range", "if-range", "accept-encoding"})
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,31} +(\S+)\Z")
_BASIC: Final = re.compile(r"basic +([A-Za-z0-9+/=_-]+)\Z", re.IGNORECASE)
_USER: Final = re.compile(r"[A-Za-z0-9._-]{0,20}\Z|[A-Za-z0-9._+-]{1,40}@[A-Za-z0-9.-]{1,60}\Z")
"""What may stand beside a placeholder in `Basic`: shorter than keys are, or an address of mail."""


class Clean(NamedTuple):
    """A request as it is judged: placeholders only. `removed` names headers and parameters."""

    resource: Resource
    headers: list[tuple[str, str]]
    removed: tuple[str, ...] = ()


class Filled(NamedTuple):
    """A request as it is sent. `names` are the credentials in it; nothing of this is logged."""

    target: str
    headers: list[tuple[str, str]]
    names: tuple[str, ...] = ()


class _Own(NamedTuple):
    """A credential as this run has it. `header` is folded."""

    name: str
    placeholder: str
    title: str
    header: str
    format: str
    places: frozenset[tuple[str, int]]


class Keyring:
    """The credentials of one run. `secrets` are the values by name, `random` gives a fresh text."""

    def __init__(
        self, policy: Policy, secrets: Mapping[str, str], random: Callable[[], str]
    ) -> None:
        self._values = {name: secrets[name] for name in policy.credentials if name in secrets}
        self._own: list[_Own] = []
        self._environment: dict[str, str] = {}
        for name, credential in policy.credentials.items():
            placeholder = f"authority-placeholder-{name}-{random()}"
            places = frozenset((h, p or 443) for h, p in map(private_key, credential.hosts))
            header, form = credential.header, credential.format
            self._own.append(_Own(name, placeholder, header, folded_name(header), form, places))
            self._environment[credential.from_env] = placeholder
        self._sought = {one.name: spelled(one.placeholder, "") for one in self._own}
        self._known = tuple(
            spelled(self._values[one.name], one.placeholder)
            for one in self._own
            if usable(self._values.get(one.name, ""))
        )

    @property
    def environment(self) -> dict[str, str]:
        """The placeholders, under the variables' names, for the run."""
        return dict(self._environment)

    @property
    def placeholders(self) -> dict[str, str]:
        """The placeholders by the credentials' names."""
        return {one.name: one.placeholder for one in self._own}

    def guards(self, resource: Resource) -> bool:
        """Whether the host and port have a credential rule."""
        return any((resource.host, resource.port) in one.places for one in self._own)

    # --- asking ---

    def foreign(self, resource: Resource, headers: Headers) -> tuple[str, ...]:
        """Credentials whose placeholder goes to a host that it is not for: refuse the request."""
        text = "\n".join([resource.text, *(part for header in headers for part in header)])
        decoded = (unquote_plus(resource.text), *_basics(headers))
        blob = "\n".join([text, *decoded]).encode("utf-8", "surrogateescape")
        return tuple(
            one.name
            for one in self._own
            if (resource.host, resource.port) not in one.places
            and redact(blob, (self._sought[one.name],))[1]
        )

    def clean(self, resource: Resource, headers: Headers) -> Clean:
        """The request as it is judged: keys that are not this host's placeholders are gone."""
        mine = self._for(resource)
        if not mine:
            return Clean(resource, list(headers))
        kept, removed = [], []
        set_by_us = {one.header for one in mine}
        for name, value in headers:
            folded = folded_name(name)
            if folded in _DROPPED_ASKING:
                continue
            if (folded in set_by_us or is_key_header(folded)) and not _held(folded, value, mine):
                removed.append(folded)
                continue
            kept.append((name, value))
        kept.append(("Accept-Encoding", "identity"))
        query, taken = _clean_query(resource.query, mine)
        if taken:
            path = "/" + "/".join(resource.segments)
            base = resource.text[: resource.text.index(path, resource.text.index("://") + 3)]
            tail = "" if query is None else "?" + query
            resource = parse("http.request", f"{base}{path}{tail}")
        return Clean(resource, kept, (*removed, *(f"?{name}" for name in taken)))

    def fill(self, clean: Clean) -> Filled:
        """The request as it is sent. Raises `EffectFailed` for a secret that may not be used."""
        mine = self._for(clean.resource)
        query = clean.resource.query
        tail = "" if query is None else "?" + query
        target = "/" + "/".join(clean.resource.segments)
        if not mine:
            return Filled(target + tail, list(clean.headers))
        used: dict[str, None] = {}
        headers = [self._filled(name, value, mine, used) for name, value in clean.headers]
        if query is not None:
            tail = "?" + self._filled_query(query, mine, used)
        taken = {folded_name(name) for name, _ in headers}
        for one in mine:
            if one.name in used or one.header in taken:
                continue
            value = one.format.replace("{}", value_of(one.name, self._values))
            headers.append((one.title, value))
            taken.add(one.header)
            used[one.name] = None
        return Filled(target + tail, headers, tuple(used))

    @staticmethod
    def check_transport(filled: Filled, resource: Resource, address: str) -> None:
        """Raises `EffectFailed` when a secret would leave in the clear. `address` is the peer's."""
        if filled.names and resource.scheme != "https" and judge_address(address) != "loopback":
            raise EffectFailed(f"The credential {filled.names[0]} is only sent over https.")

    # --- answers ---

    def scrubber(self) -> Scrubber | None:
        """Replaces secrets in the body of an answer; None when there is none to look for."""
        return Scrubber(self._known) if self._known else None

    def answer_headers(
        self, resource: Resource, headers: Iterable[tuple[bytes, bytes]]
    ) -> tuple[list[tuple[bytes, bytes]], int]:
        """The headers of an answer without secrets, and how many places were replaced."""
        guarded, out, places = self.guards(resource), [], 0
        for name, value in headers:
            if guarded and name.lower() in (b"set-cookie", b"set-cookie2"):
                continue
            clean_name, in_name = redact(name, self._known)
            clean_value, in_value = redact(value, self._known)
            places += in_name + in_value
            out.append((clean_name, clean_value))
        return out, places

    def unacceptable(
        self, resource: Resource, status: int, headers: Iterable[tuple[bytes, bytes]]
    ) -> str:
        """Why an answer may not be passed on: a secret could hide or be cut in it. Empty: it may."""
        if not self.guards(resource):
            return ""
        if status == 206:
            return "A host that gets a credential may not answer in parts."
        for name, value in headers:
            if name.lower() == b"content-encoding" and value.strip().lower() != b"identity":
                return "A host that gets a credential may not answer compressed."
        return ""

    # --- within ---

    def _for(self, resource: Resource) -> list[_Own]:
        place = (resource.host, resource.port)
        return [one for one in self._own if place in one.places]

    def _filled(
        self, name: str, value: str, mine: Sequence[_Own], used: dict[str, None]
    ) -> tuple[str, str]:
        folded = folded_name(name)
        if not is_key_header(folded) and all(folded != one.header for one in mine):
            return name, value
        basic = _basic(value)
        for one in mine:
            if basic is not None and one.placeholder in basic.split(":", 1):
                used[one.name] = None
                secret = value_of(one.name, self._values)
                pair = basic.replace(one.placeholder, secret).encode("utf-8")
                return name, "Basic " + base64.b64encode(pair).decode("ascii")
            if one.placeholder in value:
                used[one.name] = None
                return name, value.replace(one.placeholder, value_of(one.name, self._values))
        return name, value

    def _filled_query(self, query: str, mine: Sequence[_Own], used: dict[str, None]) -> str:
        out = []
        for part in re.split("([&;])", query):
            key, _, value = part.partition("=")
            own = next((one for one in mine if unquote_plus(value) == one.placeholder), None)
            if own is not None and is_key_parameter(key):
                used[own.name] = None
                value = quote(value_of(own.name, self._values), safe="")
                out.append(f"{key}={value}")
            else:
                out.append(part)
        return "".join(out)


def _basic(value: str) -> str | None:
    found = _BASIC.match(value.strip())
    if found is None:
        return None
    try:
        text = base64.b64decode(found[1] + "=" * (-len(found[1]) % 4), validate=True)
        return text.decode("utf-8")
    except (binascii.Error, ValueError):
        return None


def _basics(headers: Headers) -> list[str]:
    return [text for _, value in headers if (text := _basic(value)) is not None]


def _held(folded: str, value: str, mine: Sequence[_Own]) -> bool:
    """Whether a header's value is one of this host's placeholders and nothing else of weight."""
    value = value.strip()
    scheme = _SCHEME.match(value)
    basic = _basic(value)
    for one in mine:
        if value == one.placeholder or (scheme and scheme[1] == one.placeholder):
            return True
        if folded == one.header and value == one.format.replace("{}", one.placeholder):
            return True
        if basic is not None and basic.count(":") == 1:
            user, _, password = basic.partition(":")
            if one.placeholder in (user, password):
                other = password if user == one.placeholder else user
                return other == one.placeholder or bool(_USER.match(other))
    return False


def _clean_query(query: str | None, mine: Sequence[_Own]) -> tuple[str | None, list[str]]:
    """The query without keys, and the names of the parameters that were taken out."""
    if query is None:
        return None, []
    kept, taken, separator = "", [], ""
    for part in re.split("([&;])", query):
        if part in ("&", ";"):
            separator = part
            continue
        key, _, value = part.partition("=")
        mine_only = any(unquote_plus(value) == one.placeholder for one in mine)
        if is_key_parameter(key) and not mine_only:
            taken.append(shown(unquote_plus(key), 60))
            continue
        kept += (separator if kept else "") + part
        separator = ""
    return (kept or None), taken
