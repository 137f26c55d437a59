"""The run's own certificate authority: what TLS inside the run ends at.

Rules
- One authority a run, made when the run starts and gone with it. Its key is an object of the gate's
  process: it is never written, sent or logged, and signs nothing but leaves for single hosts.
- It can vouch for no more than the policy's http rules name. That is said in the certificate too
  (critical name constraints, RFC 5280 4.2.1.10), so that even a stolen key could pass for those
  hosts only, towards programs of this run only. Above `MAX_NAMES` names the constraint is left out:
  clients check every one of them at each handshake. `constrained` says which it is.
- A leaf is for one host, with its name or address as subject alternative name and no common name.
  Its key is its own; it goes to the worker that speaks TLS with the program, the authority's does
  not. Leaves are kept, at most `MAX_LEAVES`, the least used goes first.
- Everything is valid from an hour before the start (clocks of a restored machine lag) to an hour
  after the run's last possible moment, and at most `MAX_DAYS`. Serial numbers are random, 20 bytes.
- `bundle` is what programs are given: the certificates of the system, then the run's own.
"""

from __future__ import annotations

import datetime
import ipaddress
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from authority.kernel.addresses import is_address

MAX_NAMES: Final = 200
MAX_LEAVES: Final = 1024
MAX_DAYS: Final = 90
_MARGIN: Final = datetime.timedelta(hours=1)
_NO_ADDRESSES: Final = (
    x509.IPAddress(ipaddress.ip_network("0.0.0.0/0")),
    x509.IPAddress(ipaddress.ip_network("::/0")),
)


class Leaf(NamedTuple):
    """A certificate and its key, both as PEM."""

    cert_pem: bytes
    key_pem: bytes


class Unvouched(Exception):
    """A host that this authority does not vouch for."""


class RunCA:
    """The authority of one run. `hosts` are canonical: a name also stands for what is below it.

    `now` and `lifetime_us` (the longest that the run can take) bound everything that it signs.
    """

    def __init__(self, hosts: Sequence[str], *, now: datetime.datetime, lifetime_us: int) -> None:
        self._names = frozenset(host for host in hosts if not is_address(host))
        self._addresses = frozenset(host for host in hosts if is_address(host))
        self.constrained = len(self._names) + len(self._addresses) <= MAX_NAMES
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._begin = now - _MARGIN
        longest = datetime.timedelta(days=MAX_DAYS)
        self._end = now + min(datetime.timedelta(microseconds=lifetime_us), longest) + _MARGIN
        self._leaves: OrderedDict[str, Leaf] = OrderedDict()
        self._certificate = self._root()
        self.pem = self._certificate.public_bytes(serialization.Encoding.PEM)

    def vouches(self, host: str) -> bool:
        """Whether a (canonical) host is one of those that the policy's http rules name."""
        if is_address(host):
            return host in self._addresses
        rest = host
        while rest:
            if rest in self._names:
                return True
            _, _, rest = rest.partition(".")
        return False

    def leaf(self, host: str) -> Leaf:
        """The certificate and key for a host. Raises `Unvouched`."""
        found = self._leaves.get(host)
        if found is None:
            if not self.vouches(host):
                raise Unvouched("no http rule of the policy names this host")
            if len(self._leaves) >= MAX_LEAVES:
                self._leaves.popitem(last=False)
            found = self._leaves[host] = self._signed(host)
        self._leaves.move_to_end(host)
        return found

    def bundle(self, system_pem: bytes) -> bytes:
        """The system's certificates and the run's own, for programs of the run."""
        separator = b"" if not system_pem or system_pem.endswith(b"\n") else b"\n"
        return system_pem + separator + self.pem

    def _root(self) -> x509.Certificate:
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Authority"),
                x509.NameAttribute(NameOID.COMMON_NAME, f"Authority run {secrets.token_hex(8)}"),
            ]
        )
        builder = self._builder(name, self._key.public_key()).issuer_name(name)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        builder = builder.add_extension(_usage(signs_certificates=True), True)
        if self.constrained and (constraints := self._constraints()) is not None:
            builder = builder.add_extension(constraints, True)
        return builder.sign(self._key, hashes.SHA256())

    def _constraints(self) -> x509.NameConstraints | None:
        names: list[x509.GeneralName] = [x509.DNSName(name) for name in sorted(self._names)]
        numbers: list[x509.GeneralName] = [
            x509.IPAddress(ipaddress.ip_network(address)) for address in sorted(self._addresses)
        ]
        # A kind of name without a permitted one is not restricted at all: it is excluded instead.
        excluded: list[x509.GeneralName] = []
        if not numbers:
            excluded += _NO_ADDRESSES
        if not names:
            excluded.append(x509.DNSName(""))
        return x509.NameConstraints([*names, *numbers] or None, excluded or None)

    def _signed(self, host: str) -> Leaf:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Authority")])
        alternative: x509.GeneralName = (
            x509.IPAddress(ipaddress.ip_address(host)) if is_address(host) else x509.DNSName(host)
        )
        certificate = (
            self._builder(subject, key.public_key())
            .issuer_name(self._certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
            .add_extension(_usage(signs_certificates=False), True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
            .add_extension(x509.SubjectAlternativeName([alternative]), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False
            )
            .sign(self._key, hashes.SHA256())
        )
        return Leaf(
            certificate.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        )

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .public_key(key)
            .serial_number(int.from_bytes(secrets.token_bytes(20), "big") >> 1 or 1)
            .not_valid_before(self._begin)
            .not_valid_after(self._end)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), False)
        )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
