"""Certificates that are trusted: the system's, what the policy adds, and the run's own authority.

Rules
- `network.ca` names files of the person who wrote the policy. They are read when a run starts; one that
  is missing, too large, or holds no certificate refuses the start. Only certificates are taken over,
  written anew: a key or a comment in such a file goes nowhere.
- Towards the outside the gate trusts the system's certificates and those of `network.ca`. A program in
  the run is given both and the run's own authority, since it may also speak TLS through a tunnel.
- The system's bundle is read again when it changed.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Final

from authority.errors import AuthorityError
from authority.kernel.addresses import shown

SYSTEM_BUNDLES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
MAX_FILE: Final = 4 * 1024 * 1024


class TrustError(AuthorityError):
    """A file of `network.ca` that can't be used."""


def system_bundle() -> bytes:
    """The system's certificates as PEM; empty where there are none."""
    for path in SYSTEM_BUNDLES:
        try:
            found = os.stat(path)
        except OSError:
            continue
        if 0 < found.st_size <= MAX_FILE:
            return _read(path, found.st_mtime_ns, found.st_size)
    return b""


def extra_certificates(paths: Sequence[str]) -> bytes:
    """The certificates of `network.ca`, as PEM. Raises `TrustError`."""
    if not paths:
        return b""
    # Here alone: a gate without such a policy starts without it.
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    out = b""
    for path in paths:
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_FILE + 1)
        except OSError as error:
            raise TrustError(
                f"network.ca: {shown(path)} can't be read: {error.strerror}", "name a PEM file"
            ) from None
        try:
            if len(data) > MAX_FILE:
                raise ValueError("too large")
            found = x509.load_pem_x509_certificates(data)
        except ValueError:
            raise TrustError(
                f"network.ca: {shown(path)} holds no certificates", "name a PEM file"
            ) from None
        out += b"".join(each.public_bytes(Encoding.PEM) for each in found)
    return out


@functools.lru_cache(maxsize=4)
def _read(path: str, _changed: int, _size: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(MAX_FILE)
