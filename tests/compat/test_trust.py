"""Certificates that a policy adds: taken over as certificates, or the run does not start."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from authority.compat.trust import MAX_FILE, TrustError, extra_certificates, system_bundle
from gate.lab import GateError, Lab

from .test_ca import authority

KEY = ec.generate_private_key(ec.SECP256R1()).private_bytes(
    serialization.Encoding.PEM,
    serialization.PrivateFormat.PKCS8,
    serialization.NoEncryption(),
)
POLICY = """version = 1
[filesystem]
read = ["./**"]
write = ["./**"]
[network]
http = ["GET https://api.example/**"]
ca = "./company.pem"
"""


def test_only_certificates_are_taken_over(tmp_path: Path) -> None:
    one, two = authority().pem, authority().pem
    path = tmp_path / "company.pem"
    path.write_bytes(b"a comment\n" + one + KEY + b"\n" + two)
    found = extra_certificates([str(path)])
    assert found == one + two
    assert extra_certificates([]) == b""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=found.decode("ascii"))
    assert len(context.get_ca_certs()) == 2


@pytest.mark.parametrize("data", [b"", b"nothing", KEY, b"x" * (MAX_FILE + 1), None])
def test_anything_else_is_refused(data: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "company.pem"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(TrustError) as caught:
        extra_certificates([str(path)])
    assert caught.value.hint


def test_the_systems_bundle_is_certificates() -> None:
    if not os.path.exists("/etc/ssl/certs/ca-certificates.crt"):
        pytest.skip("this machine has no bundle there")
    assert system_bundle().count(b"-----BEGIN CERTIFICATE-----") > 10


def test_a_run_does_not_start_without_them_and_can_not_write_them(lab: Lab) -> None:
    with pytest.raises(GateError, match=r"network\.ca"):
        lab.run("print('ran')", POLICY)
    lab.file("company.pem", authority().pem)
    done = lab.run(
        """
from authority.agent import Denied, connect
gate = connect()
print(gate.read("company.pem")[:10])
try:
    gate.write("company.pem", b"mine")
except Denied as denied:
    print(denied.code)
""",
        POLICY,
    )
    assert done.out.split("\n")[:2] == ["b'-----BEGIN'", "E_POLICY_DENY"], done.out + done.err
    assert lab.denials(run=done.run)[-1]["rule"] == "built in"
