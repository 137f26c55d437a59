"""A life with everything in it that a verdict can rest on, played at a real gate.

`python -m tests.replay.lively FOLDER` keeps the log of one, with its content store and public key, for
the tests of later versions. (The folder of the installation stands in policies: keep one that was
made by an installation whose place may be told.)
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.gate.lab import Attached, Lab

from authority import tokens
from authority.errors import AuthorityError

POLICY = """\
version = 1
[filesystem]
read = ["./data/**", "./secret/**"]
write = ["./out/**"]
deny = ["**/.env"]
[network]
http = ["GET,POST http://127.0.0.1:{port}/ok/**"]
private = ["127.0.0.1:{port}"]
[tools.count]
command = ["/usr/bin/true"]
content = ["text"]
[agents.same]
command = ["/usr/bin/true"]
[agents.less]
command = ["/usr/bin/true"]
policy = "less.toml"
[labels]
trusted = ["user", "fs:./data/own/**"]
secrets = {{ pay = ["fs:./secret/**"] }}
release = {{ pay = ["fs:./out/pay/**"] }}
[approvals]
require = ["fs:./out/asked/**"]
[budgets]
file_bytes = 60_000
denials = 200
"""
LESS = 'version = 1\n[filesystem]\nread = ["./data/**"]\n'


class Web:
    """A server that answers every request with ok."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                link, _ = self._socket.accept()
            except OSError:
                return
            with link:
                link.settimeout(5)
                link.recv(65536)
                link.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")

    def close(self) -> None:
        self._socket.close()


def attempt(call: Callable[..., Any], *args: Any, **more: Any) -> Any:
    """What came of it; a refusal is what many of these are for."""
    try:
        return call(*args, **more)
    except AuthorityError as refused:
        return refused


def play(lab: Lab) -> None:
    """Two lives of a gate, with runs of every end."""
    web = Web()
    lab.file("data/own/a.txt", "mine")
    lab.file("data/long.txt", "x" * 3000)
    lab.file("secret/s.txt", "1234")
    lab.file("less.toml", LESS)
    policy = lab.policy(POLICY.format(port=web.port))
    try:
        with lab.attached(policy) as run:
            _clean(lab, run, web.port)
            _capabilities(lab, run)
        with lab.attached(policy) as run:
            _marked(run, web.port)
            lab.admin("POST", "/v1/halt", {"run": run.run, "reason": "tried"})
        lab.stop()
        with lab.attached(policy) as run:
            attempt(run.gate().read, "data/own/a.txt")
            lab.admin("POST", "/v1/halt", {"reason": "all"})
        lab.resume()
        with lab.attached(policy) as run:
            _spent(run)
    finally:
        lab.stop()
        web.close()


def _clean(lab: Lab, run: Attached, port: int) -> None:
    gate = run.gate()
    for agent in ("same", "less", "nobody"):
        child = attempt(gate.spawn, agent)
        if isinstance(child, str):
            attempt(gate.wait, child, 10_000)
            attempt(gate.send, child, b"late")
    for name in ("data/own/a.txt", "data/own/none", "/etc/passwd", "data/.env", "a/../b"):
        attempt(gate.read, name)
    attempt(gate.read, "data/own/a.txt", offset=1, length=2)
    attempt(gate.list, "data/own")
    attempt(gate.stat, "data")
    attempt(gate.write, "out/x", b"y" * 2500)
    attempt(gate.append, "out/x", b"\xff\x00z")
    attempt(gate.rename, "out/x", "out/y")
    attempt(gate.rename, "out/y", "elsewhere")
    attempt(gate.delete, "out/y")
    attempt(gate.http, "POST", f"http://127.0.0.1:{port}/ok/a", body=b"q")
    attempt(gate.http, "GET", f"http://127.0.0.1:{port}/no")
    attempt(gate.tool, "count", {"text": "hello", "n": 3})
    attempt(gate.tool, "nothing", {})
    attempt(gate.write, "out/asked/x", b"1")
    (waiting,) = lab.admin("GET", "/v1/approvals")["approvals"]
    lab.admin("POST", f"/v1/approvals/{waiting['id']}", {"granted": True})
    for _ in range(2):
        attempt(gate.write, "out/asked/x", b"1")
    attempt(gate.send, "run0", b"hi")
    attempt(gate.receive, 0)


def _capabilities(lab: Lab, run: Attached) -> None:
    gate = run.gate()
    once = gate.attenuate(count=1, methods=["fs.*"])
    slow = gate.attenuate(rate={"count": 2, "per": 60_000_000, "burst": 2})
    some = gate.attenuate(quotas=[{"argument": "length", "limit": 5}])
    late = gate.attenuate(expires=1)
    deep = gate.attenuate(once, resources=[f"fs:{lab.work}/data/own/**"])
    unseen = gate.attenuate(resources=["fs:/nowhere/**"])
    asks = gate.attenuate(approval=True)
    for token in (deep, once, slow, slow, slow, late, unseen, unseen, asks):
        attempt(gate.read, "data/own/a.txt", capability=token)
    for length in (3, 3, 2):
        attempt(gate.read, "data/own/a.txt", length=length, capability=some)
    attempt(gate.stat, "data/own", capability=some)
    forged = bytearray(run.token)
    forged[-1] ^= 1
    attempt(gate.read, "data/own/a.txt", capability=bytes(forged))
    minted = lab.admin("POST", "/v1/tokens", {"run": run.run, "restriction": {"count": 3}})
    attempt(gate.read, "data/own/a.txt", capability=minted["token"])
    lab.admin("POST", "/v1/keys/rotate", {"grace_us": 0})
    time.sleep(0.01)
    attempt(gate.read, "data/own/a.txt", capability=minted["token"])
    fresh = lab.admin("POST", "/v1/tokens", {"run": run.run})
    attempt(gate.read, "data/own/a.txt", capability=fresh["token"])
    lab.admin("POST", "/v1/tokens/revoke", {"token": fresh["id"]})
    attempt(gate.read, "data/own/a.txt", capability=fresh["token"])
    wire = run.wire()
    wire.ask("fs.read", "data/own/a.txt", token=None)
    wire.ask("fs.none", "x", token=run.token)
    wire.ask("fs.read", "data/own/a.txt", token=run.token, n=1)


def _marked(run: Attached, port: int) -> None:
    gate = run.gate()
    attempt(gate.read, "data/long.txt")
    attempt(gate.tool, "count", {"n": 1})
    attempt(gate.tool, "count", {"text": "seen"})
    attempt(gate.http, "POST", f"http://127.0.0.1:{port}/ok/a", body=b"q")
    attempt(gate.http, "GET", f"http://127.0.0.1:{port}/ok/a")
    attempt(gate.read, "secret/s.txt")
    attempt(gate.write, "out/a", b"1234")
    attempt(gate.write, "out/pay/a", b"1234" * 500)
    attempt(gate.delete, "out/pay/a")
    attempt(gate.delete, "data/long.txt")


def _spent(run: Attached) -> None:
    gate = run.gate()
    for size in (40_000, 30_000, 20_000, 1):
        attempt(gate.write, "out/big", b"b" * size)
    lesser = tokens.to_text(run.token)
    attempt(gate.write, "out/big", b"", capability=lesser)


def keep(folder: Path) -> None:
    """Play, and keep what an auditor would be given."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    lab = Lab(root)
    play(lab)
    shutil.copytree(
        lab.directory.log, folder / "log", ignore=shutil.ignore_patterns("lock", "clean", "*.zero")
    )
    for segment in (folder / "log").glob("*"):
        if segment.is_file():
            segment.write_bytes(segment.read_bytes().rstrip(b"\0"))
    shutil.copytree(lab.directory.store, folder / "store")
    (folder / "fingerprint.txt").write_text(lab.fingerprint + "\n")
    shutil.rmtree(root)


if __name__ == "__main__":
    os.umask(0o022)
    keep(Path(sys.argv[1]))
