"""Attacks where two parts of the gate meet: each part alone keeps its rule, and the pair must too.

From inside real runs, with a server of this machine outside; beside each refusal stands its control.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from .lab import OPEN, Lab, lab_at, wait_for


class Sink:
    """A server that keeps what it is told, and answers every piece."""

    def __init__(self, answer: bytes = b"ok") -> None:
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.got = b""
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._take, args=(sock,), daemon=True).start()

    def _take(self, sock: socket.socket) -> None:
        with sock:
            try:
                while data := sock.recv(65536):
                    self.got += data
                    sock.sendall(self._answer)
            except OSError:
                return

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def outside() -> Iterator[Sink]:
    made = Sink()
    yield made
    made.close()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_at() as made:
        yield made


TUNNEL = """\
import socket
s = socket.create_connection(('127.0.0.1', 48101), 20)
s.sendall(b'CONNECT 127.0.0.1:%d HTTP/1.1\\r\\nHost: 127.0.0.1:%d\\r\\n\\r\\n')
head = s.recv(4096).split(b'\\r\\n')[0]
print(head.decode(), flush=True)
def say(data):
    s.sendall(data)
    try: return s.recv(100).decode()
    except OSError as error: return type(error).__name__
"""


@pytest.mark.parametrize(
    "look",
    [
        "open('payroll/secret').read()",
        "str(__import__('os').listdir('payroll'))",
        "open('theirs/words').read()",
        "str(__import__('os').listdir('theirs'))",
    ],
)
def test_what_was_read_from_a_mount_is_known_to_a_tunnel_that_was_open_before(
    lab: Lab, outside: Sink, look: str
) -> None:
    lab.file("payroll/secret", "salary: 1")
    lab.file("theirs/words", "do as i say")
    lab.file("plain", "harmless")
    place = f"127.0.0.1:{outside.port}"
    policy = f"""\
version = 1
[filesystem]
read = ["./**"]
[network]
allow = ["{place}"]
private = ["{place}"]
[labels]
trusted = ["user", "fs:./payroll/**", "fs:./plain", "fs:/usr/**", "tcp://{place}"]
secrets = {{ payroll = ["fs:./payroll/**"] }}
release = {{ payroll = ["output"] }}
"""
    source = (
        TUNNEL
        % (outside.port, outside.port)
        + "print(say(open('plain').read().encode()), flush=True)\n"
        f"data = {look}\n"
        "print(repr(say(data.encode())), flush=True)\n"
    )
    # Isolated: otherwise Python itself lists the folder that it starts in.
    ran = lab.run([sys.executable, "-I", "-c", source], policy)
    lines = ran.out.splitlines()
    assert lines[0].split()[1] == "200", ran.out + ran.err
    assert lines[1] == "ok"  # the control: the same way, before
    assert outside.got == b"harmless", lines
    assert lab.denials(run=ran.run, code="E_TAINT", effect="net.connect")


HEADS = """\
import socket
def ask(size):
    s = socket.create_connection(('127.0.0.1', 48101), 20)
    head = b'GET http://{place}/ HTTP/1.1\\r\\nHost:{place}\\r\\n'
    each = (size - len(head) - 2) // 120
    head += b''.join(b'a%03d:' % i + b'x' * (each - 7) + b'\\r\\n' for i in range(120)) + b'\\r\\n'
    s.sendall(head)
    print(len(head) // 1000, s.recv(4096).split(b' ')[1].decode(), flush=True)
ask(32000)
ask(65536)
"""


def test_a_request_whose_head_is_larger_than_its_reservation_halts_nobody(lab: Lab) -> None:
    outside = Sink(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    place = f"127.0.0.1:{outside.port}"
    policy = OPEN + f'[network]\nhttp = ["GET http://{place}/"]\nprivate = ["{place}"]\n'
    ran = lab.run(HEADS.format(place=place), policy)
    # It fits the worker's bound for a head and, written out as it is counted, not the reservation.
    assert ran.out.split() == ["31", "200", "65", "403"], ran.out + ran.err
    assert ran.summary["reason"] == "exited"
    assert not lab.log(kind="halt")
    (denied,) = lab.denials(run=ran.run, effect="http.request")
    assert denied["code"] == "E_SCHEMA_INVALID"
    for outcome in lab.log(kind="outcome", run=ran.run):
        (admit,) = [e for e in lab.log(kind="admit") if e["seq"] == outcome["of"]]
        for dimension, amount in outcome.get("spent", {}).items():
            assert amount <= admit.get("reserve", {}).get(dimension, 0)


APPROVED = """\
import socket, sys
def ask(method, body):
    s = socket.create_connection(('127.0.0.1', 48101), 20)
    head = f'{method} http://PLACE/pay HTTP/1.1\\r\\nHost: PLACE\\r\\n'
    head += f'Content-Length: {len(body)}\\r\\n\\r\\n'
    s.sendall(head.encode() + body)
    try: return s.recv(4096).split(b' ')[1].decode()
    except (OSError, IndexError): return 'cut'
for line in sys.stdin:
    method, _, body = line.strip().partition(' ')
    print(ask(method, body.encode()), flush=True)
"""


def test_an_approval_is_not_for_a_body_that_nobody_saw(lab: Lab) -> None:
    outside = Sink(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    place = f"127.0.0.1:{outside.port}"
    policy = OPEN.replace('"fs:./**"]', f'"fs:./**", "POST,DELETE http://{place}/**"]')
    policy += (
        f'[network]\nhttp = ["POST,DELETE http://{place}/**"]\nprivate = ["{place}"]\n'
        f'[approvals]\nrequire = ["http://{place}/**"]\n'
    )
    program = [sys.executable, "-I", "-u", "-c", APPROVED.replace("PLACE", place)]
    ran = lab.start(program, policy).started()

    def ask(line: str, *expected: str) -> None:
        before = ran.out
        lab.input(ran, line.encode() + b"\n")
        ran.until(lambda e: e["event"] == "output" and len(ran.out.split()) > len(before.split()))
        assert ran.out.split()[-1] in expected, (line, ran.out)

    def approve() -> None:
        (asked,) = lab.admin("GET", "/v1/approvals")["approvals"]
        lab.admin("POST", f"/v1/approvals/{asked['id']}", {"granted": True})

    ask("POST 1 for alice", "403")
    approve()
    # The body is refused before the head has gone, or after: then the server may answer it alone.
    ask("POST 9 for mallo", "403", "200", "cut")
    assert b"mallo" not in outside.got
    assert lab.denials(run=ran.run, effect="http.request", code="E_POLICY_DENY")
    ask("DELETE", "403")
    approve()
    ask("DELETE", "200")  # the control: everything of it was to be seen
    ask("DELETE", "403")
    lab.input(ran, b"", eof=True)
    ran.end()


BUSY = (
    TUNNEL
    + """\
import os, threading
def write():
    for count in range(10**6):
        with open(f'out/{count}', 'wb') as file:
            for _ in range(3): file.write(b'x' * 5000); file.flush()
        os.rename(f'out/{count}', f'out/{count}.done')
def talk():
    while True: say(b'y' * 1000)
def ask():
    import http.client, json
    while True:
        c = http.client.HTTPConnection('127.0.0.1', 48102)
        said = [{'role': 'user', 'content': 'z' * 500}]
        body = json.dumps({'model': 'obedient', 'stream': True, 'messages': said})
        c.request('POST', '/v1/chat/completions', body, {'Content-Type': 'application/json'})
        c.getresponse().read()
for work in (write, talk, ask): threading.Thread(target=work).start()
"""
)


def test_kill_9_in_the_middle_of_writing_talking_and_asking_leaves_nothing_unrecorded() -> None:
    outside = Sink()
    place = f"127.0.0.1:{outside.port}"
    policy = OPEN.replace('"fs:./**"]', f'"fs:./**", "tcp://{place}"]')
    policy += f'[network]\nallow = ["{place}"]\nprivate = ["{place}"]\n'
    policy += '[models]\nallow = ["obedient"]\n'
    with lab_at() as lab:
        source = BUSY % (outside.port, outside.port)
        ran = lab.start([sys.executable, "-I", "-c", source], policy).started()
        run = ran.run
        wait_for(lambda: len(os.listdir(lab.work / "out")) > 20 and len(outside.got) > 10_000)
        wait_for(lambda: len(lab.log(kind="outcome", run=run)) > 100)
        lab.kill()
        assert lab.run("print(1)").out == "1\n"  # it opens the log again, and goes on
        assert lab.cli("audit", "verify").returncode == 0
        log = lab.log(run=run)
        admitted = {e["seq"]: e for e in log if e["kind"] == "admit"}
        assert {e["effect"] for e in admitted.values()} >= {
            "fs.modify",
            "net.connect",
            "model.chat",
        }
        # What lies there was admitted, and so was every byte of it.
        names = {e["resource"] for e in admitted.values()} | {
            e.get("target", "") for e in admitted.values()
        }
        files = list((lab.work / "out").iterdir())
        assert all(f"fs:{file}" in names for file in files)
        spent: Counter[str] = Counter()
        for entry in admitted.values():
            spent.update(entry.get("reserve", {}))
        assert sum(file.stat().st_size for file in files) <= spent["file_bytes"]
        # What arrived outside was committed before it left.
        (tunnel,) = [e["seq"] for e in admitted.values() if e["effect"] == "net.connect"]
        out = sum(e["body"]["size"] for e in log if e["kind"] == "chunk" and e["of"] == tunnel
                  and e["way"] == "out")  # fmt: skip
        assert len(outside.got) <= out
        assert lab.admin("GET", "/v1/status")["runs"] == []


GREEDY = """\
import os, socket, threading
def talk():
    try:
        s = socket.create_connection(('127.0.0.1', 48101), 20)
        s.sendall(f'CONNECT 127.0.0.1:PORT HTTP/1.1\\r\\nHost: 127.0.0.1:PORT\\r\\n\\r\\n'.encode())
        s.recv(4096)
        while True: s.sendall(b'y' * 3000); s.recv(10)
    except OSError: pass
def write(number):
    try:
        with open(f'out/greedy-{number}', 'wb', buffering=0) as file:
            while True: file.write(b'x' * 3000)
    except OSError: pass
work = [threading.Thread(target=talk) for _ in range(32)]
work += [threading.Thread(target=write, args=(n,)) for n in range(32)]
for each in work: each.start()
for each in work: each.join(60)
print('over', sum(each.is_alive() for each in work), flush=True)
os._exit(0)
"""


def test_sixty_four_at_once_spend_no_more_than_the_budget(lab: Lab, outside: Sink) -> None:
    place = f"127.0.0.1:{outside.port}"
    network, files = 300_000, 500_000
    policy = OPEN.replace('"fs:./**"]', f'"fs:./**", "tcp://{place}"]').replace(
        "[budgets]", f"[budgets]\nnetwork_bytes = {network}\nfile_bytes = {files}"
    )
    policy += f'[network]\nallow = ["{place}"]\nprivate = ["{place}"]\n[limits]\nprocesses = 200\n'
    source = GREEDY.replace("PORT", str(outside.port))
    ran = lab.run([sys.executable, "-I", "-c", source], policy)
    assert ran.out.startswith("over"), ran.out + ran.err
    written = sum(file.stat().st_size for file in (lab.work / "out").glob("greedy-*"))
    assert files * 0.8 < written <= files  # nearly all of it could be used, and no byte more
    spent = ran.summary["budgets"]["spent"]
    assert len(outside.got) <= spent["network_bytes"] <= network
    assert spent["network_bytes"] > network * 0.8
    assert written <= spent["file_bytes"] <= files
    # Folded from the log by the rules alone: pieces as they came, reservations as they were settled.
    used: Counter[str] = Counter()
    for entry in lab.log(run=ran.run):
        if entry["kind"] == "chunk":
            used.update(entry.get("charge", {}))
        if entry["kind"] == "outcome":
            used.update(entry.get("spent", {}))
    assert used["network_bytes"] <= network
    assert used["file_bytes"] <= files
    assert lab.denials(run=ran.run, code="E_BUDGET_EXCEEDED")
