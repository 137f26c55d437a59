"""Credentials: put into requests at the gate, taken out of answers.

Rules
- A credential belongs to hosts and ports (`host` alone is port 443). For those its header is set by
  the gate; what the run wrote into that header, `Authorization` or `Cookie` is removed, so that a
  program which insists on some token can hold a placeholder and never the real one.
- The secret leaves over TLS only, or to a loopback address.
- In every answer the secrets of the policy are replaced by `[credential NAME]` (`secret_forms` says
  in what spellings they are found). A host that gets a secret is trusted with it.
- From a host that got a secret, `Set-Cookie` is dropped (a session is as good as the secret) and
  a compressed or partial answer is refused (a secret could hide or be cut in it).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from authority.effects.base import EffectFailed
from authority.effects.secret_forms import Secret, spelled, usable
from authority.kernel.addresses import split_host_port
from authority.kernel.policy import Policy
from authority.kernel.resources import Resource


class Injection(NamedTuple):
    """One header that the gate puts in."""

    name: str
    header: str
    value: str


def injections(
    policy: Policy, resource: Resource, secrets: Mapping[str, str]
) -> tuple[Injection, ...]:
    """What to put into a request to `resource`. Raises `EffectFailed` when it can't be done."""
    found: dict[str, Injection] = {}
    for name, credential in policy.credentials.items():
        if (resource.host, resource.port) not in map(_host_port, credential.hosts):
            continue
        secret = value_of(name, secrets)
        key = credential.header.lower()
        if key in found:
            raise EffectFailed(
                f"The credentials {found[key].name} and {name} claim the same header of this host."
            )
        value = credential.format.replace("{}", secret)
        found[key] = Injection(name, credential.header, value)
    return tuple(found.values())


def value_of(name: str, secrets: Mapping[str, str]) -> str:
    """The value of a credential. Raises `EffectFailed` when there is none that may be used."""
    found = secrets.get(name)
    if found is None:
        raise EffectFailed(f"The gate has no value for the credential {name}.")
    if not usable(found):
        raise EffectFailed(
            f"The value of the credential {name} is not 8 to 8,192 printable characters."
        )
    return found


def known_secrets(policy: Policy, secrets: Mapping[str, str]) -> tuple[Secret, ...]:
    """Every usable secret that the policy names, as it is looked for in answers."""
    return tuple(
        spelled(secrets[name], f"[credential {name}]")
        for name in policy.credentials
        if name in secrets and usable(secrets[name])
    )


def _host_port(text: str) -> tuple[str, int]:
    host, port = split_host_port(text)
    return host, port or 443
