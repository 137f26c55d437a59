"""Credentials: put into requests at the gate, taken out of answers.

Rules
- A credential belongs to hosts and ports (`host` alone is port 443). For those its header is set by
  the gate; what the run wrote into that header, `Authorization` or `Cookie` is removed, so that a
  program which insists on some token can hold a placeholder and never the real one.
- The secret leaves over TLS only, or to a loopback address.
- A secret is 8 to 8,192 printable ASCII characters. A shorter one could not be found in an answer
  without finding it everywhere, so it is not used at all.
- In every answer the secrets of the policy are replaced by `[credential NAME]`: as they are, in any
  letter case, escaped for URLs, JSON and HTML, in hexadecimal, and in base64 (both alphabets) at
  any offset. That stops a server that echoes; it can't stop one that helps the run on purpose, by
  spelling the secret backwards, say. A host that gets a secret is trusted with it.
- From a host that got a secret, `Set-Cookie` is dropped (a session is as good as the secret) and
  a compressed or partial answer is refused (a secret could hide or be cut in it).
"""

from __future__ import annotations

import base64
import functools
import html
import json
import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote

from authority.effects.base import EffectFailed
from authority.kernel.addresses import split_host_port
from authority.kernel.policy import Policy
from authority.kernel.resources import Resource

_USABLE = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{6,8190})[\x21-\x7e]\Z")


class Injection(NamedTuple):
    """One header that the gate puts in."""

    name: str
    header: str
    value: str


class Secret(NamedTuple):
    """A credential's name and what it looks like in an answer, lower case."""

    name: str
    forms: tuple[bytes, ...]


def injections(
    policy: Policy, resource: Resource, secrets: Mapping[str, str]
) -> tuple[Injection, ...]:
    """What to put into a request to `resource`. Raises `EffectFailed` when it can't be done."""
    found: dict[str, Injection] = {}
    for name, credential in policy.credentials.items():
        if (resource.host, resource.port) not in map(_host_port, credential.hosts):
            continue
        secret = secrets.get(name)
        if secret is None:
            raise EffectFailed(f"The gate has no value for the credential {name}.")
        if not _USABLE.match(secret):
            raise EffectFailed(
                f"The value of the credential {name} is not 8 to 8,192 printable characters."
            )
        key = credential.header.lower()
        if key in found:
            raise EffectFailed(
                f"The credentials {found[key].name} and {name} claim the same header of this host."
            )
        value = credential.format.replace("{}", secret)
        found[key] = Injection(name, credential.header, value)
    return tuple(found.values())


def known_secrets(policy: Policy, secrets: Mapping[str, str]) -> tuple[Secret, ...]:
    """Every usable secret that the policy names, as it is looked for in answers."""
    return tuple(
        Secret(name, _forms(secrets[name]))
        for name in policy.credentials
        if name in secrets and _USABLE.match(secrets[name])
    )


def redact(data: bytes, secrets: tuple[Secret, ...]) -> tuple[bytes, int]:
    """`data` with each secret replaced, and how many places that were."""
    spans: list[tuple[int, int, str]] = []
    lower = data.lower() if secrets else b""
    for secret in secrets:
        for form in secret.forms:
            start = lower.find(form)
            while start >= 0:
                spans.append((start, start + len(form), secret.name))
                start = lower.find(form, start + 1)
    if not spans:
        return data, 0
    spans.sort()
    parts: list[bytes] = []
    end = places = 0
    for first, last, name in spans:
        if first >= end:
            parts += (data[end:first], f"[credential {name}]".encode())
            places += 1
        end = max(end, last)
    parts.append(data[end:])
    return b"".join(parts), places


def _host_port(text: str) -> tuple[str, int]:
    host, port = split_host_port(text)
    return host, port or 443


@functools.lru_cache(maxsize=64)
def _forms(secret: str) -> tuple[bytes, ...]:
    raw = secret.encode("ascii")
    forms = {
        raw,
        quote(secret, safe="").encode(),
        json.dumps(secret)[1:-1].encode(),
        json.dumps(secret)[1:-1].replace("/", "\\/").encode(),
        html.escape(secret).encode(),
        raw.hex().encode(),
    }
    for lead in range(3):
        # In base64, where in a group of three the secret begins decides what it looks like. The
        # first and last character also hold bits of what stands beside it, so they are left out.
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            text = encode(b"\0" * lead + raw).rstrip(b"=")
            forms.add(text[(0, 2, 3)[lead] : (lead + len(raw)) * 8 // 6])
    return tuple(sorted(form.lower() for form in forms))
