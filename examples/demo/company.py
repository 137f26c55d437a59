"""A company's network on this machine: a proxy that stands for the Internet, and who vouches for names.

Whatever name the proxy is asked for leads to a server here, so a program asks for real names, with
TLS, and no packet leaves the loopback. The tests of unmodified clients stand on this too.
"""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

SECONDS = 60

Lookup = Callable[[str], tuple[str, int] | None]
"""Where `host:port` leads; None for nowhere."""


def serve_proxy(listener: socket.socket, lookup: Lookup, asked: list[str]) -> None:
    """Carry each CONNECT to where its target leads, until the listener is closed.

    `asked` gets every target, in the order of the requests.
    """
    with contextlib.suppress(OSError):
        while True:
            client, _ = listener.accept()
            threading.Thread(target=_tunnel, args=(client, lookup, asked), daemon=True).start()


def _tunnel(client: socket.socket, lookup: Lookup, asked: list[str]) -> None:
    with contextlib.suppress(OSError), client:
        client.settimeout(SECONDS)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if not (piece := client.recv(1)):
                return
            head += piece
        target = head.split()[1].decode("latin-1")
        asked.append(target)
        place = lookup(target)
        if place is None:
            client.sendall(b"HTTP/1.1 502 No such place\r\n\r\n")
            return
        with socket.create_connection(place, timeout=SECONDS) as server:
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=_copy, args=(server, client), daemon=True)
            back.start()
            _copy(client, server)
            back.join(SECONDS)


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def certificates(folder: Path, authority: Path, names: Sequence[str]) -> ssl.SSLContext:
    """A server's context with a certificate for `names`; who vouches for it goes to `authority`.

    The server's key and certificate are left in `folder`. Both certificates last three hours.
    """
    now = datetime.datetime.now(datetime.UTC)
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "the company next door")])

    def builder(name: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(root_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=3))
        )

    root = (
        builder(root_name, root_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(root_key, hashes.SHA256())
    )
    leaf = (
        builder(x509.Name([]), key.public_key())
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), True)
        .sign(root_key, hashes.SHA256())
    )
    authority.write_bytes(root.public_bytes(serialization.Encoding.PEM))
    authority.chmod(0o644)
    chain = folder / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    chain.write_bytes(leaf.public_bytes(serialization.Encoding.PEM) + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    return context
