"""Attacks with capabilities at the gate: on channels and on the control API."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import pytest

from authority import tokens
from authority.gate.client import token_of
from authority.kernel import capabilities

from .lab import Attached, GateError, Lab, code_of


@pytest.fixture
def run(lab: Lab) -> Iterator[Attached]:
    with lab.attached() as found:
        yield found


def narrow(token: bytes, **restriction: object) -> bytes:
    plain = tokens.restriction_from_plain(restriction)
    return tokens.attenuate(token, plain, nonce=os.urandom(tokens.NONCE_SIZE))


def read(run: Attached, token: bytes | None) -> str:
    wire = run.wire()
    code, _ = wire.ask("fs.read", "data/a.txt", token=token)
    wire.close()
    return code


def test_control_the_runs_own_token(run: Attached) -> None:
    assert read(run, run.token) == ""


def test_none_garbage_and_every_truncation(lab: Lab, run: Attached) -> None:
    wire = run.wire()
    token = run.token
    asks = [None, b"", b"x", b"auth1_", bytes(64), token + b"\x00", token[1:]]
    asks += [token[:cut] for cut in range(1, len(token))]
    wire.send(*(wire.request("fs.stat", "data/a.txt", token=t) for t in asks))
    replies = wire.replies(len(asks))
    assert {r.status for r in replies} == {1}
    codes = {r.n: r.body[0] for r in replies}
    assert codes[1] == "E_CAP_MISSING"
    assert set(codes.values()) == {"E_CAP_MISSING", "E_CAP_INVALID"}
    assert not lab.log(run=run.run, kind="admit")
    assert len(lab.denials(run=run.run)) == len(asks)


def test_every_flipped_bit(lab: Lab, run: Attached) -> None:
    wire, flips = run.wire(), []
    for at in range(len(run.token)):
        changed = bytearray(run.token)
        changed[at] ^= 1 << (at % 8)
        flips.append(bytes(changed))
    wire.send(*(wire.request("fs.stat", "data/a.txt", token=t) for t in flips))
    assert {r.status for r in wire.replies(len(flips))} == {1}
    assert not lab.log(run=run.run, kind="admit")


def test_another_runs_token(lab: Lab, run: Attached) -> None:
    with lab.attached() as other:
        assert read(run, other.token) == "E_CAP_INVALID"
        assert read(other, other.token) == ""
        assert read(other, run.token) == "E_CAP_INVALID"
    assert read(run, other.token) == "E_CAP_INVALID"  # and after it has ended


def test_admin_and_resume_tokens_are_none_on_a_channel(lab: Lab, run: Attached) -> None:
    for path in (lab.directory.admin_token, lab.directory.resume_token):
        token = tokens.from_text(token_of(path))
        assert read(run, token) == "E_CAP_INVALID"
        wire = run.wire(hello=False)
        assert wire.hello(token).code == "E_CAP_INVALID"


def test_an_attenuated_token_does_less_and_its_parent_as_much(run: Attached) -> None:
    small = narrow(run.token, methods=["fs.stat"])
    assert read(run, small) == "E_CAP_SCOPE"
    assert run.wire().ask("fs.stat", "data/a.txt", token=small)[0] == ""
    elsewhere = narrow(run.token, resources=["fs:/elsewhere/**"])
    assert read(run, elsewhere) == "E_CAP_SCOPE"
    once = narrow(run.token, count=1)
    assert [read(run, once), read(run, once)] == ["", "E_CAP_RATE"]
    # A child of it has no count of its own: what its parent used up is gone.
    assert read(run, narrow(once, count=100)) == "E_CAP_RATE"
    assert read(run, run.token) == ""


def test_expired_and_not_yet_valid(run: Attached) -> None:
    now = time.time_ns() // 1000
    assert read(run, narrow(run.token, expires=now + 60_000_000)) == ""
    assert read(run, narrow(run.token, expires=now - 1)) == "E_CAP_EXPIRED"
    assert read(run, narrow(run.token, not_before=now + 60_000_000)) == "E_CAP_EXPIRED"


def test_revoking_kills_all_below_and_nothing_above(lab: Lab, run: Attached) -> None:
    child = narrow(run.token, methods=["fs.*"])
    grandchild, sibling = narrow(child, count=50), narrow(run.token, count=50)
    for token in (child, grandchild, sibling):
        assert read(run, token) == ""
    lab.admin("POST", "/v1/tokens/revoke", {"token": tokens.to_text(child)})
    assert read(run, child) == read(run, grandchild) == "E_CAP_REVOKED"
    assert read(run, narrow(child, count=1)) == "E_CAP_REVOKED"  # made after the revocation
    assert read(run, sibling) == read(run, run.token) == ""
    lab.admin("POST", "/v1/tokens/revoke", {"token": capabilities.parse(run.token).ids[0]})
    assert read(run, sibling) == read(run, run.token) == "E_CAP_REVOKED"


def test_a_minted_token_and_its_limits(lab: Lab, run: Attached) -> None:
    made = lab.admin("POST", "/v1/tokens",
                     {"run": run.run, "restriction": {"methods": ["fs.stat"]}})  # fmt: skip
    token = tokens.from_text(made["token"])
    assert read(run, token) == "E_CAP_SCOPE"
    assert run.wire().ask("fs.stat", "data/a.txt", token=token)[0] == ""
    for bad in ({"run": "nobody"}, {"run": run.run, "restriction": {"nonsense": 1}},
                {"run": run.run, "restriction": [1]}):  # fmt: skip
        with pytest.raises(GateError):
            lab.admin("POST", "/v1/tokens", bad)


def test_a_retired_key_after_its_grace(own: Lab) -> None:
    with own.attached() as early, own.attached() as late:
        own.admin("POST", "/v1/keys/rotate", {"grace_us": 60_000_000})
        assert read(early, early.token) == ""  # within the grace
        with own.attached() as new:
            assert read(new, new.token) == ""
    with own.attached() as late:
        own.admin("POST", "/v1/keys/rotate", {"grace_us": 0})
        assert read_hello(late) == "E_CAP_INVALID"
        assert not [e for e in own.log(run=late.run) if e["kind"] == "admit"]
        with own.attached() as new:
            assert read(new, new.token) == ""


def read_hello(run: Attached) -> str:
    wire = run.wire(hello=False)
    said = wire.hello(run.token)
    if hasattr(said, "code"):
        return str(said.code)
    return str(wire.ask("fs.read", "data/a.txt", token=run.token)[0])


def test_a_revocation_survives_a_restart(own: Lab) -> None:
    first = token_of(own.directory.admin_token)
    assert own.with_bearer_started(first, "GET", "/v1/status")["halted"] is None
    own.admin("POST", "/v1/keys/rotate", {"grace_us": 2**50})  # a second admin token, too
    second = token_of(own.directory.admin_token)
    own.admin("POST", "/v1/tokens/revoke", {"token": first})
    for restart in (False, True):
        if restart:
            own.kill()
        with pytest.raises(GateError, match="E_CAP_REVOKED"):
            own.with_bearer_started(first, "GET", "/v1/status")
        assert own.with_bearer_started(second, "GET", "/v1/status")["halted"] is None


# --- the control API ---


def test_the_control_api_wants_a_token_for_its_action(lab: Lab, run: Attached) -> None:
    admin, resume = token_of(lab.directory.admin_token), token_of(lab.directory.resume_token)
    for bearer in ("", "auth1_", "auth1_AAAA", "x" * 5000, run.text, admin[:-1], admin + "A"):
        before = len(lab.denials(effect="gate.status"))
        with pytest.raises(GateError, match="E_CAP"):
            lab.with_bearer(bearer, "GET", "/v1/status")
        assert len(lab.denials(effect="gate.status")) == before + 1
    assert lab.with_bearer(admin, "GET", "/v1/status")["log"]
    with pytest.raises(GateError, match="E_CAP_SCOPE"):
        lab.with_bearer(resume, "GET", "/v1/status")
    with pytest.raises(GateError, match="E_CAP_SCOPE"):
        lab.with_bearer(resume, "POST", "/v1/halt", {})
    with pytest.raises(GateError, match="E_CAP_SCOPE"):
        lab.with_bearer(admin, "POST", "/v1/resume", {"reason": "me"})


def test_an_attenuated_admin_token_covers_what_it_says(lab: Lab) -> None:
    admin = tokens.from_text(token_of(lab.directory.admin_token))
    looker = tokens.to_text(narrow(admin, methods=["gate.status"]))
    assert lab.with_bearer(looker, "GET", "/v1/status")["log"]
    with pytest.raises(GateError, match="E_CAP_SCOPE"):
        lab.with_bearer(looker, "POST", "/v1/halt", {})
    old = tokens.to_text(narrow(admin, expires=1))
    with pytest.raises(GateError, match="E_CAP_EXPIRED"):
        lab.with_bearer(old, "GET", "/v1/status")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/v1/runs", {}),
        ("POST", "/v1/runs", {"argv": "sh", "cwd": "/"}),
        ("POST", "/v1/runs", {"argv": ["a\0b"], "cwd": "/"}),
        ("POST", "/v1/runs", {"argv": ["sh"], "cwd": "/", "policy_path": "/p"}),
        ("POST", "/v1/runs", {"argv": ["sh"], "cwd": "/", "policy_path": "/p",
                              "policy_sources": {"/p": "version = 2"}}),
        ("POST", "/v1/runs", {"argv": ["sh"], "cwd": "/", "policy_path": "/p",
                              "policy_sources": {"/p": 1}}),
        ("POST", "/v1/attach", {"cwd": "x"}),
        ("POST", "/v1/tokens", {"run": {"a": 1}}),
        ("POST", "/v1/tokens/revoke", {"token": "nobody"}),
        ("POST", "/v1/tokens/revoke", {"token": 7}),
        ("POST", "/v1/keys/rotate", {"grace_us": "soon"}),
        ("POST", "/v1/keys/rotate", {"grace_us": -1}),
        ("POST", "/v1/approvals/none", {"granted": True}),
        ("POST", "/v1/halt", {"run": "nobody"}),
        ("POST", "/v1/runs/nobody/input", {"data": ""}),
        ("POST", "/v1/runs/nobody/stop", {}),
        ("GET", "/v1/nothing", None),
        ("DELETE", "/v1/status", None),
    ],
)  # fmt: skip
def test_a_call_that_makes_no_sense_is_answered_with_an_error(
    lab: Lab, method: str, path: str, body: object
) -> None:
    with pytest.raises(GateError) as raised:
        lab.admin(method, path, body)  # type: ignore[arg-type]
    assert "Traceback" not in str(raised.value)
    assert "failed" not in str(raised.value)  # an answer, not a defect
    assert lab.admin("GET", "/v1/status")["log"]


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"POST /v1/halt HTTP/1.1\r\nHost: gate\r\nContent-Length: nine\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: gate\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        b"POST /v1/halt HTTP/1.1\r\nHost: gate\r\nContent-Length: 3\r\n\r\nabc",
    ],
    ids=["garbage", "a length", "a header", "no JSON"],
)
def test_bytes_that_are_no_call(lab: Lab, data: bytes) -> None:
    lab.admin("GET", "/v1/status")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(str(lab.directory.control_socket))
        sock.sendall(data)
        assert sock.recv(4096).split()[1] in (b"400", b"403")
    assert lab.admin("GET", "/v1/status")["halted"] is None


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_another_user_reaches_neither_socket(lab: Lab) -> None:
    lab.admin("GET", "/v1/status")

    def try_as(uid: int, open_up: bool) -> bytes:
        """What the control socket says to `uid`; `open_up` lets it through the folder's mode."""
        readable, writable = os.pipe()
        if open_up:
            lab.directory.root.chmod(0o755)
            lab.directory.control_socket.chmod(0o666)
        try:
            child = os.fork()
            if child == 0:
                said = b"nothing"
                try:
                    os.setresgid(uid, uid, uid)
                    os.setresuid(uid, uid, uid)
                    sock = socket.socket(socket.AF_UNIX)
                    sock.settimeout(5)
                    sock.connect(str(lab.directory.control_socket))
                    sock.sendall(b"GET /v1/status HTTP/1.1\r\nHost: g\r\n\r\n")
                    said = sock.recv(100) or b"closed"
                except OSError as error:
                    said = type(error).__name__.encode()
                finally:
                    os.write(writable, said)
                    os._exit(0)
            os.waitpid(child, 0)
        finally:
            lab.directory.control_socket.chmod(0o600)
            lab.directory.root.chmod(0o700)
            os.close(writable)
        with os.fdopen(readable, "rb") as said_by:
            return said_by.read()

    assert try_as(65534, False) == b"PermissionError"
    assert try_as(65534, True) in {b"closed", b"ConnectionResetError", b"BrokenPipeError"}
    assert try_as(0, False).startswith(b"HTTP/1.1 403")  # the control: let in, without a token


def test_denials_of_the_agents_library_have_the_entry(lab: Lab, run: Attached) -> None:
    gate = run.gate()
    assert code_of(lambda: gate.write("nowhere", b"")) == "E_POLICY_DENY"
    (entry,) = lab.denials(run=run.run)
    assert gate.last_receipt is not None
    assert (gate.last_receipt.seq, gate.last_receipt.hash) == (entry["seq"], entry["hash"])
