"""Sockets of the host (a docker's, an ssh agent's, a bus), from real runs, by every way to files.

The control beside each: a file of the same folder is read. Folders that are bound plainly, because
somebody asked for that by name, show theirs: that is said when such a run starts.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator

import pytest

from .lab import OPEN, Lab, lab_at

PROGRAM = """\
import os, socket, sys
def reach(kind, where):
    s = socket.socket(socket.AF_UNIX, kind)
    s.settimeout(3)
    try:
        s.connect(where)
        s.send(b'let me in')
        return 'reached'
    except (OSError, ValueError) as error:
        return type(error).__name__
here = os.getcwd()
for name, kind, where in (
    ('file', socket.SOCK_STREAM, here + '/agent.sock'),
    ('messages', socket.SOCK_DGRAM, here + '/bus.sock'),
    ('abstract', socket.SOCK_STREAM, '\\0' + sys.argv[1]),
    ('by /proc', socket.SOCK_STREAM, '/proc/self/cwd/agent.sock'),
    ('linked', socket.SOCK_STREAM, here + '/link.sock'),
    ('docker', socket.SOCK_STREAM, '/var/run/docker.sock'),
):
    print(name, reach(kind, where), flush=True)
for name in ('SSH_AUTH_SOCK', 'DBUS_SESSION_BUS_ADDRESS', 'DOCKER_HOST'):
    print(name, name in os.environ, flush=True)
with open('data/a.txt') as file: print(file.read())
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_at() as made:
        yield made


@pytest.mark.parametrize("way", ["mount", "calls", "bind"])
def test_no_socket_of_the_host_is_reached(
    lab: Lab, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SSH_AUTH_SOCK", "DBUS_SESSION_BUS_ADDRESS", "DOCKER_HOST"):
        monkeypatch.setenv(name, "unix:/nowhere")
    hidden = f"authority-test-{os.getpid()}-{way}"
    servers = []
    for kind, where in (
        (socket.SOCK_STREAM, str(lab.work / "agent.sock")),
        (socket.SOCK_DGRAM, str(lab.work / "bus.sock")),
        (socket.SOCK_STREAM, "\0" + hidden),
    ):
        if not where.startswith("\0") and os.path.exists(where):
            os.unlink(where)
        server = socket.socket(socket.AF_UNIX, kind)
        server.bind(where)
        if kind == socket.SOCK_STREAM:
            server.listen()
        if not where.startswith("\0"):
            os.chmod(where, 0o777)
        server.setblocking(False)
        servers.append(server)
    link = lab.work / "link.sock"
    if not link.is_symlink():
        link.symlink_to("agent.sock")
    policy = OPEN.replace("[filesystem]", f'[filesystem]\nfiles = "{way}"')
    ran = lab.run([sys.executable, "-I", "-c", PROGRAM, hidden], policy)
    told = dict(line.rsplit(" ", 1) for line in ran.out.splitlines() if " " in line)
    assert ran.out.splitlines()[-1] == "hello", ran.out + ran.err
    assert len(told) == 9, told
    got = {name for name, what in told.items() if what in ("reached", "True")}
    said = any("sockets in bound folders" in each for each in ran.events[0]["missing"])
    if way == "bind":
        assert said
        got -= {"file", "messages", "by /proc", "linked"}
    else:
        assert not said
        for server in servers[:2]:
            with pytest.raises(BlockingIOError):
                server.recv(100) if server.type == socket.SOCK_DGRAM else server.accept()
    assert not got, told
    with pytest.raises(BlockingIOError):
        servers[2].accept()
    for server in servers:
        server.close()
