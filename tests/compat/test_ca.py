"""The run's own authority: real handshakes, and what it will not vouch for."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Sequence

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID, NameOID

from authority.compat.ca import MAX_NAMES, Leaf, RunCA, Unvouched

NOW = datetime.datetime.now(datetime.UTC)
HOURS_US = 12 * 3_600_000_000


def authority(*hosts: str, lifetime_us: int = HOURS_US) -> RunCA:
    return RunCA(hosts or ("api.example",), now=NOW, lifetime_us=lifetime_us)


def handshake(bundle: bytes, leaf: Leaf, host: str, tmp_path: object) -> None:
    """A TLS handshake in memory, the client trusting `bundle` alone. Raises `ssl.SSLError`."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    path = f"{tmp_path}/leaf.pem"
    with open(path, "wb") as file:
        file.write(leaf.cert_pem + leaf.key_pem)
    server.load_cert_chain(path)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(cadata=bundle.decode("ascii"))
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(down, up, server_hostname=host)
    theirs = server.wrap_bio(up, down, server_side=True)
    pending = [ours, theirs]
    for _ in range(10):
        for side in list(pending):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            pending.remove(side)
    assert not pending


def forged(ca: RunCA, alternative: Sequence[x509.GeneralName]) -> Leaf:
    """What a thief of the authority's key would sign."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "thief")]))
        .issuer_name(ca._certificate.subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW - datetime.timedelta(minutes=5))
        .not_valid_after(NOW + datetime.timedelta(hours=12))
        .add_extension(x509.SubjectAlternativeName(alternative), False)
        .sign(ca._key, hashes.SHA256())
    )
    return Leaf(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


@pytest.mark.parametrize(
    ("rule", "host"),
    [
        ("api.example", "api.example"),
        ("example", "deep.below.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("a_b.example", "a_b.example"),
        ("127.0.0.1", "127.0.0.1"),
        ("2001:db8::7", "2001:db8::7"),
    ],
)
def test_a_client_that_trusts_the_bundle_accepts_the_leaf(
    rule: str, host: str, tmp_path: object
) -> None:
    ca = authority(rule)
    handshake(ca.bundle(b""), ca.leaf(host), host, tmp_path)


def test_another_name_is_not_accepted(tmp_path: object) -> None:
    ca = authority("api.example", "www.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(ca.pem, ca.leaf("api.example"), "www.example", tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(authority("api.example").pem, ca.leaf("api.example"), "api.example", tmp_path)


@pytest.mark.parametrize("host", ["bank.example", "example", "api.example.evil.test", "10.0.0.1"])
def test_it_vouches_for_what_the_policy_names_only(host: str) -> None:
    ca = authority("api.example")
    with pytest.raises(Unvouched):
        ca.leaf(host)
    assert ca.leaf("api.example") is ca.leaf("api.example")


@pytest.mark.parametrize(
    ("alternative", "host"),
    [
        (x509.DNSName("bank.example"), "bank.example"),
        (x509.IPAddress(ipaddress.ip_address("127.0.0.1")), "127.0.0.1"),
        (x509.IPAddress(ipaddress.ip_address("::1")), "::1"),
    ],
)
def test_even_its_stolen_key_passes_for_nothing_else(
    alternative: x509.GeneralName, host: str, tmp_path: object
) -> None:
    ca = authority("api.example")
    own = forged(ca, [x509.DNSName("api.example")])
    handshake(ca.pem, own, "api.example", tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match="subtree"):
        handshake(ca.pem, forged(ca, [alternative]), host, tmp_path)


def test_addresses_alone_vouch_for_no_name(tmp_path: object) -> None:
    ca = authority("127.0.0.1")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(ca.pem, forged(ca, [x509.DNSName("bank.example")]), "bank.example", tmp_path)


def test_too_many_names_are_said_not_to_be_constrained() -> None:
    assert authority(*(f"h{n}.example" for n in range(MAX_NAMES))).constrained
    many = authority(*(f"h{n}.example" for n in range(MAX_NAMES + 1)))
    assert not many.constrained
    with pytest.raises(Unvouched):
        many.leaf("bank.example")


def test_form_of_the_certificates() -> None:
    ca = authority("api.example", "127.0.0.1")
    root = x509.load_pem_x509_certificate(ca.pem)
    leaf = x509.load_pem_x509_certificate(ca.leaf("api.example").cert_pem)
    basic = root.extensions.get_extension_for_oid(ExtensionOID.BASIC_CONSTRAINTS)
    assert basic.critical
    assert basic.value == x509.BasicConstraints(ca=True, path_length=0)
    assert root.extensions.get_extension_for_oid(ExtensionOID.NAME_CONSTRAINTS).critical
    below = leaf.extensions.get_extension_for_oid(ExtensionOID.BASIC_CONSTRAINTS)
    assert below.value == x509.BasicConstraints(ca=False, path_length=None)
    assert not leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    assert leaf.not_valid_after_utc <= NOW + datetime.timedelta(hours=13)
    assert leaf.serial_number != root.serial_number
    assert leaf.serial_number.bit_length() > 100
    assert leaf.public_key() != root.public_key()
    longest = x509.load_pem_x509_certificate(authority(lifetime_us=2**53).pem)
    assert longest.not_valid_after_utc < NOW + datetime.timedelta(days=91)


def test_the_leaves_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("authority.compat.ca.MAX_LEAVES", 2)
    ca = authority("example")
    one, two = ca.leaf("one.example"), ca.leaf("two.example")
    assert ca.leaf("one.example") is one
    ca.leaf("three.example")
    assert len(ca._leaves) == 2
    assert ca.leaf("one.example") is one, "what was used last stays"
    assert ca.leaf("two.example") is not two


def test_a_bundle_is_the_systems_and_its_own() -> None:
    ca, other = authority(), authority()
    assert ca.bundle(other.pem.rstrip()).decode().count("BEGIN CERTIFICATE") == 2
    assert b"PRIVATE" not in ca.bundle(other.pem)
    assert len(x509.load_pem_x509_certificates(ca.bundle(other.pem))) == 2
