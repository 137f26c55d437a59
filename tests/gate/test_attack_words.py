"""A run's words on a person's terminal: every place that takes a name from a run, every command that
shows one. Nothing that steers a terminal, reorders or hides text comes through any of them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import pytest

from authority.gate.client import GateError

from .lab import Lab, Ran, lab_at

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b1A\u202eevil\u2066\u200b\r\nFAKE: all is well\x00"
_BAD = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")

PROGRAM = r"""
import os, socket
from authority.agent import connect
evil = %r
name = evil.replace('\0', '').replace('\r', '').encode()
flat = evil.replace('\0', '').replace('\r', '').replace('\n', '')
quoting = 'evil"]\x27\\#$(id)`'
def tries(work):
    try: work()
    except Exception as error: pass
def proxied(port, data):
    s = socket.create_connection(('127.0.0.1', port), 5)
    s.sendall(data)
    s.settimeout(5)
    s.recv(4096)
# files: looked for, denied, made
for each in [d + n for d in (b'out/', b'closed/') for n in (name, quoting.encode())]:
    tries(lambda: open(each, 'w').write(flat))
    tries(lambda: os.mkdir(each + b'.d'))
    tries(lambda: os.symlink(name, each + b'.l'))
    tries(lambda: open(each).read())
tries(lambda: os.setxattr('out', 'user.' + flat, name))
# the network: hosts, methods, headers, names
b = name
for data in (
    b'CONNECT ' + b + b':443 HTTP/1.1\r\nHost: ' + b + b'\r\n\r\n',
    b'GET http://' + b + b'/ HTTP/1.1\r\nHost: a\r\n\r\n',
    b'GET http://closed.test/\x1b[2J%%1b%%5b HTTP/1.1\r\nHost: closed.test\r\nX: ' + b + b'\r\n\r\n',
    b'\x1b[2J http://closed.test/ HTTP/1.1\r\nHost: closed.test\r\n\r\n',
    b'\x05\x01\x00\x05\x01\x00\x03' + bytes((len(b),)) + b + b'\x01\xbb',
):
    tries(lambda: proxied(48101, data))
label = name[:60]
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
question = b'\0\1\1\0\0\1\0\0\0\0\0\0' + bytes((len(label),)) + label + b'\4evil\0\0\1\0\1'
tries(lambda: u.sendto(question, ('127.0.0.1', 53)))
# models
import json
for model in (flat, quoting):
    body = {'model': model, 'messages': [{'role': 'user', 'content': flat}]}
    body = json.dumps(body).encode()
    head = b'POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:48102\r\nContent-Length: %%d\r\n\r\n'
    tries(lambda: proxied(48102, head %% len(body) + body))
# the agent's own requests
with connect() as gate:
    for work in (
        lambda: gate.read(flat), lambda: gate.write('closed/' + flat, b''), lambda: gate.tool(flat),
        lambda: gate.http('GET', 'http://closed.test/' + flat), lambda: gate.spawn(flat),
    ):
        tries(work)
print(evil)
"""

POLICY = """\
version = 1
[filesystem]
read = ["./out/**", "./closed/**"]
write = ["./out/**"]
[network]
http = ["http://open.test/**"]
allow = ["open.test:443"]
[models]
allow = ["obedient"]
[labels]
trusted = ["user", "fs:./**"]
[budgets]
denials = 1000
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_at() as made:
        made.file("closed/there", "").parent.chmod(0o777)
        yield made


def harmless(lab: Lab, *arguments: str, codes: tuple[int, ...] = (0,)) -> str:
    done = lab.cli(*arguments)
    assert done.returncode in codes, (arguments, done.returncode, done.stderr)
    for text in (done.stdout, done.stderr):
        found = _BAD.search(text)
        assert not found, (arguments, text[max(0, found.start() - 100) : found.end() + 50])
        assert not re.search("^FAKE", text, re.MULTILINE), arguments
    return done.stdout + done.stderr


@pytest.mark.parametrize("more", [["--dry-run"], [], ["--suggest"], ["--json"]])
def test_no_word_of_a_run_steers_a_terminal(lab: Lab, more: list[str]) -> None:
    policy = lab.policy(POLICY)
    started = ["run", *more, "--policy", str(policy), "--", sys.executable, "-c", PROGRAM % EVIL]
    shown = lab.cli(*started)
    # What a program prints keeps its line ends; everything else of it is escaped.
    for text in (shown.stdout, shown.stderr):
        found = _BAD.search(text)
        assert not found, text[max(0, found.start() - 200) : found.end() + 50]
    run = lab.log(kind="run.start")[-1]["run"]
    denied = lab.denials(run=run)
    kinds = {e.get("effect", "") for e in denied}
    assert {"fs.modify", "net.connect", "http.request", "model.chat", "tool.call"} <= kinds, kinds
    assert "evil" in harmless(lab, "suggest", run)
    assert "evil" in harmless(lab, "audit", "query", "--run", run)
    harmless(lab, "audit", "tail", "-n", "300")
    for entry in denied[:40]:
        harmless(lab, "why", str(entry["seq"]), codes=(0, 1))
    if "--dry-run" in more:
        kept = harmless(lab, "dry", "list").split()[0]
        assert "evil" in harmless(lab, "dry", "show", kept)


def test_an_argument_that_is_not_unicode_stops_nobody(lab: Lab) -> None:
    policy = lab.policy(POLICY)
    running = lab.start("print(1, flush=True); input(); print(2, flush=True)", policy).said("1")
    program = [sys.executable, "-c", "print('ran')"]
    for bad in ("a\udcff", "\ud800b"):
        for body in (
            {**lab.body([*program, bad], policy)},
            {**lab.body(program, policy), "environment": {"TERM": bad}},
            {**lab.body(program, policy), "policy_path": bad},
        ):
            with pytest.raises(GateError, match="not UTF-8"):
                Ran(lab, "/v1/runs", body).started()
        with pytest.raises(GateError, match="not UTF-8"):
            lab.admin("POST", "/v1/halt", {"reason": bad})
    lab.input(running, b"\n")
    running.said("2")  # the control: whoever ran runs on, and plain words in any script pass
    assert lab.run([*program, "größer \U0001f600"], policy).out == "ran\n"
