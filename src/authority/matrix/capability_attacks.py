"""INV-2, a capability is required: forged, expired, out of scope, revoked.

The attacks come over an attached channel, as fast as the gate takes them. The genuine token is used
before and after each, so that a gate that refuses everything does not pass.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from authority import tokens
from authority.errors import AuthorityError
from authority.gate import clock
from authority.gate.client import Client, GateError
from authority.matrix import forging
from authority.matrix.listeners import HttpServer, http_server
from authority.matrix.live import POLICY, Live
from authority.matrix.verdict import Attempt, Result, Row
from authority.matrix.wire import Ask, Said, Wire
from authority.tokens import Restriction

FORGERY = Row("INV-2", "random HMAC forgery", "no forged capability is taken")
EXPIRED = Row("INV-2", "expired capability", "nothing outside its time is taken")
SCOPE = Row("INV-2", "scope violation", "nothing outside its scope is done")
REVOKED = Row("INV-2", "revoked token", "no revoked capability, nor one below it, is taken")

RANDOM_MACS = 3000
BEARERS = 40
LIVES_US = 700_000

FILE = "data/a.txt"


def read(capability: bytes | None, path: str | bytes = FILE) -> Ask:
    """The request that all these attacks make: reading a file, with that token."""
    return Ask("fs.read", path, capability=capability)


def tried(names: Sequence[str], said: Sequence[Said]) -> list[Attempt]:
    """Attempts from answers."""
    return [
        Attempt(name, s.done, s.code or f"done, entry {s.seq}")
        for name, s in zip(names, said, strict=True)
    ]


def passes(wire: Wire, capability: bytes, when: str) -> Attempt:
    """The control: a genuine capability reads the file."""
    said = wire.one(read(capability))
    good = said.done and said.value["data"] == b"hello"
    return Attempt(f"the genuine token {when}", good, said.code or f"entry {said.seq}")


def mint(live: Live, run: str, **fields: Any) -> bytes:
    """A capability of the run from the control API."""
    answer = live.admin("POST", "/v1/tokens", {"run": run, "restriction": fields})
    return tokens.from_text(str(answer["token"]))


def forgery(live: Live) -> Result:
    """Test 4."""
    seed = secrets.randbits(32)
    with live.attached() as run, live.attached() as second:
        wire = run.wire()
        mine = tokens.attenuate(run.token, Restriction(methods=("fs.*",)))
        controls = [passes(wire, run.token, "before"), passes(wire, mine, "attenuated, before")]
        made = list(forging.forgeries(mine, second.token, randoms=RANDOM_MACS, seed=seed))
        attempts = tried([n for n, _ in made], wire.ask(*[read(token) for _, token in made]))
        others = [("no capability", None), ("an empty one", b""), ("another run's", second.token)]
        attempts += tried([n for n, _ in others], wire.ask(*[read(t) for _, t in others]))
        attempts += [greeted(live, token) for _, token in made[:: len(made) // BEARERS]]
        attempts += [administers(live, token) for _, token in made[:: len(made) // BEARERS]]
        attempts.append(administers(live, run.token))
        controls += [passes(wire, run.token, "after"), passes(wire, mine, "attenuated, after")]
        denied = sum(e["kind"] == "denied" for e in live.entries(run.run))
        controls.append(
            Attempt("every refusal is an entry", denied >= len(made), f"{denied} entries")
        )
    ways = len({name for name, _ in made})
    return FORGERY.judge(
        attempts,
        controls,
        at_least=RANDOM_MACS,
        evidence=f"{len(made)} forgeries of {ways} kinds, {RANDOM_MACS} random MACs, seed {seed}",
    )


def greeted(live: Live, token: bytes) -> Attempt:
    """A forged capability in the hello of an attached program."""
    try:
        Wire(str(live.directory.attach_socket), token).close()
    except AuthorityError as error:
        return Attempt("hello", False, error.message.rpartition(" ")[2])
    return Attempt("hello", True)


def administers(live: Live, token: bytes) -> Attempt:
    """A capability that is none for the gate itself, on the control API."""
    try:
        Client(live.directory, tokens.to_text(token)).call("GET", "/v1/status")
    except GateError as error:
        return Attempt("control API", False, error.message.partition(":")[0])
    return Attempt("control API", True)


def expired(live: Live) -> Result:
    """Test 5."""
    with live.attached() as run:
        wire = run.wire()
        now = clock.wall()
        until = now + LIVES_US
        short = mint(live, run.run, expires=until)
        long = tokens.attenuate(short, Restriction(expires=now + 10**12))
        offline = tokens.attenuate(run.token, Restriction(expires=until))
        controls = [
            passes(wire, short, "inside its time"),
            passes(wire, long, "below it, inside its time"),
            passes(wire, offline, "attenuated by its holder, inside its time"),
        ]
        time.sleep(max(0, until - clock.wall()) / 1_000_000 + 0.01)
        stretched = [
            forging.attenuated_raw(short, {"expires": now + 10**12}),
            forging.attenuated_raw(short, {}),
            short.replace(until.to_bytes(8, "big"), (now + 10**12).to_bytes(8, "big")),
            offline.replace(until.to_bytes(8, "big"), (now + 10**12).to_bytes(8, "big")),
            *[forging.flipped(short, bit) for bit in range(len(short) * 8)],
        ]
        outside = {
            "expired": short,
            "below an expired one": long,
            "expired, attenuated offline": offline,
            "made expired": mint(live, run.run, expires=now),
            "expired long ago": mint(live, run.run, expires=1),
            "at time 0": mint(live, run.run, expires=0),
            "not valid yet": mint(live, run.run, not_before=now + 10**10),
            "never valid": mint(live, run.run, not_before=now + 10**10, expires=now + 1),
        }
        asks = [read(t) for t in outside.values()]
        asks += [read(t) for t in stretched]
        attempts = tried([*outside, *["stretched"] * len(stretched)], wire.ask(*asks))
        wrong = [a for a in attempts[: len(outside)] if a.detail != "E_CAP_EXPIRED"]
        controls += [
            passes(wire, run.token, "without an end, after"),
            Attempt("the refusals say E_CAP_EXPIRED", not wrong, f"{len(outside)} of them"),
        ]
        return EXPIRED.judge(
            attempts,
            controls,
            at_least=len(outside) + 4,
            evidence=f"run {run.run}: a token that lived {LIVES_US // 1000} ms, used before and after",
        )


WIDE = POLICY.replace('"./data/**"', '"./**"').replace('"./out/**"', '"./**"')
HTTP = """\
[network]
http = ["GET,POST,HEAD http://127.0.0.1:{port}/**"]
private = ["127.0.0.1:{port}"]
[labels]
trusted = ["user", "fs:./**", "http://127.0.0.1:{port}/**"]
"""


def gate_token(live: Live) -> bytes:
    """A capability for asking the gate how it is, below the administrator's."""
    text = live.directory.admin_token.read_text(encoding="ascii").strip()
    narrowed = Restriction(methods=("gate.status",))
    return tokens.attenuate(tokens.from_text(text), narrowed, nonce=secrets.token_bytes(16))


def scope(live: Live) -> Result:
    """Test 6."""
    inside = live.file("data/in/a.txt", "hello")
    for name in ("data/out.txt", "data/in2/a.txt", "data/in.txt", "data/IN/a.txt"):
        live.file(name, "out of scope")
    (inside.parent / "link").symlink_to("../out.txt")
    (inside.parent / "folder").symlink_to("..")
    before = inside.read_bytes()
    with http_server() as server, live.attached(WIDE + HTTP.format(port=server.port)) as run:
        wire = run.wire()
        files = tokens.attenuate(
            run.token,
            Restriction(resources=(f"fs:{inside.parent}/**",), methods=("fs.read", "fs.stat")),
        )
        web = tokens.attenuate(
            run.token, Restriction(resources=(f"GET http://127.0.0.1:{server.port}/ok/**",))
        )
        asks = file_asks(live, files) + web_asks(server, web)
        base = f"http://127.0.0.1:{server.port}"
        said = wire.ask(*[ask for _, ask in asks])
        attempts = tried([name for name, _ in asks], said)
        attempts.append(
            Attempt("reach the server", bool(server.asked), f"{len(server.asked)} requests came")
        )
        attempts.append(Attempt("change the file", inside.read_bytes() != before, "unchanged"))
        good = wire.ask(
            Ask("fs.read", "data/in/a.txt", capability=files),
            Ask("fs.stat", f"fs:{inside}", capability=files),
            Ask("fs.read", "data/out.txt", capability=run.token),
            Ask("fs.list", "data/in", capability=run.token),
            Ask("http.request", f"{base}/ok/1", capability=web),
            Ask("http.request", f"{base}/secret", {"method": "POST"}, capability=run.token),
        )
        controls = tried(
            ["read inside", "stat inside", "read by the wide token", "list by the wide token",
             "GET inside", "POST by the wide token"],
            good,
        )  # fmt: skip
        came = sorted(server.asked) == ["GET /ok/1", "POST /secret"]
        controls.append(Attempt("the server got these alone", came, f"{len(server.asked)}"))
    return SCOPE.judge(
        attempts,
        controls,
        at_least=30,
        evidence=f"run {run.run}: tokens for {inside.parent.name}/** and GET /ok/**",
    )


def file_asks(live: Live, token: bytes) -> list[tuple[str, Ask]]:
    """Everything that is not reading below `data/in`."""
    work = str(live.workspace)
    paths: list[str | bytes] = [
        "data/out.txt", "data/in2/a.txt", "data/in.txt", "data/IN/a.txt", "data", ".",
        "data/in/../out.txt", "data/in/./../out.txt", "data/in//../in2/a.txt",
        f"fs:{work}/data/in/../out.txt", f"fs:{work}/data/in/%2e%2e/out.txt",
        f"fs:{work}/data/in/%2E./out.txt", f"fs:{work}/data/in%2f..%2fout.txt",
        f"fs:{work}/data/in/%2e%2e%2fout.txt", f"fs:{work}/data/in%00/../out.txt",
        "data/in/%2e%2e/out.txt", "data/in/\0/../out.txt", "data/in/link", "data/in/folder/out.txt",
        "data/in\\..\\out.txt", b"data/in/\xff/../out.txt", "/etc/hostname", "fs:/etc/hostname",
        f"file://{work}/data/out.txt", f"{work}/data/in2/a.txt", "data/in/a.txt/../../out.txt",
        "\u2025/data/out.txt", "data/in/\uff0e\uff0e/out.txt",
    ]  # fmt: skip
    asks = [("read", Ask("fs.read", path, capability=token)) for path in paths]
    for effect, arguments in (
        ("fs.list", {}), ("fs.write", {"data": b"x"}), ("fs.append", {"data": b"x"}),
        ("fs.mkdir", {}), ("fs.delete", {}), ("fs.rename", {"to": "data/out2.txt"}),
        ("FS.READ", {}), ("fs.read ", {}), ("fs.*", {}), ("", {}), ("output", {"data": b"x"}),
        ("tool.call", {"arguments": {}}), ("agent.spawn", {}),
    ):  # fmt: skip
        if effect:
            asks.append((f"method {effect}", Ask(effect, "data/in/a.txt", arguments, token)))
    return asks


def web_asks(server: HttpServer, token: bytes) -> list[tuple[str, Ask]]:
    """Everything that is not GET below `/ok/`."""
    port = server.port
    base = f"http://127.0.0.1:{port}"
    urls = [
        f"{base}/secret", f"{base}/okay/1", f"{base}/", f"{base}/ok/../secret",
        f"{base}/ok/%2e%2e/secret", f"{base}/ok/..%2fsecret", f"{base}/OK/1", f"{base}/ok%2f1",
        f"http://2130706433:{port}/secret", f"http://0x7f000001:{port}/secret",
        f"http://127.1:{port}/secret", f"http://[::ffff:127.0.0.1]:{port}/secret",
        f"http://127.0.0.1:{port}@127.0.0.2:{port}/ok/1", f"http://user@127.0.0.1:{port}/secret",
        f"http://localhost:{port}/ok/1", f"http://127.0.0.1.:{port}/secret",
        f"http://127.0.0.1:{port + 1 if port < 65535 else 1}/ok/1",
        f"https://127.0.0.1:{port}/ok/1", f"{base}/secret?/ok/", f"{base}/secret#/ok/1",
        f"{base}\\@x/ok/1", f"{base}/ok/1?q=1\r\nX: y", "http://127.0.0.1/ok/1",
    ]  # fmt: skip
    asks = [("GET", Ask("http.request", url, capability=token)) for url in urls]
    for method in ("POST", "HEAD", "PUT", "DELETE", "get", "GET ", "TRACE", "CONNECT"):
        asks.append(
            (f"verb {method}", Ask("http.request", f"{base}/ok/1", {"method": method}, token))
        )
    return asks


def revoked(live: Live) -> Result:
    """Test 7."""
    gates = gate_token(live)
    with live.attached() as run:
        wire = run.wire()
        root = mint(live, run.run)
        before = tokens.attenuate(root, Restriction(methods=("fs.read",)))
        family = mint(live, run.run)
        child = tokens.attenuate(family, Restriction(methods=("fs.read", "fs.stat")))
        sibling = tokens.attenuate(family, Restriction(methods=("fs.read",)))
        controls = [
            passes(wire, root, "before"),
            passes(wire, before, "below it, before"),
            passes(wire, child, "of the family, before"),
            Attempt("a token for the gate, before", administers(live, gates).worked),
        ]
        first = live.admin("POST", "/v1/tokens/revoke", {"token": tokens.to_text(root)})
        live.admin("POST", "/v1/tokens/revoke", {"token": tokens.to_text(child)})
        gone = {
            "revoked": root,
            "attenuated before": before,
            "attenuated after": tokens.attenuate(root, Restriction(methods=("fs.read",))),
            "twice attenuated": tokens.attenuate(before, Restriction(count=5)),
            "attenuated by hand": forging.attenuated_raw(root, {}),
            "a revoked child": child,
            "below a revoked child": tokens.attenuate(child, Restriction(methods=("fs.read",))),
        }
        asks = [read(token) for token in gone.values()]
        attempts = tried(list(gone), wire.ask(*asks))
        attempts += tried(list(gone), run.wire().ask(*asks))
        controls += [
            passes(wire, family, "whose child was revoked"),
            passes(wire, sibling, "beside the revoked child"),
            passes(wire, run.token, "of the run"),
        ]
        live.admin("POST", "/v1/tokens/revoke", {"token": tokens.to_text(gates)})
        attempts.append(administers(live, gates))
    wrong = [a for a in attempts if "REVOKED" not in a.detail]
    live.stop()
    with live.attached() as again:
        wire = again.wire()
        attempts += tried([f"{n}, after a restart" for n in gone], wire.ask(*asks))
        controls.append(passes(wire, again.token, "after the restart"))
    after = administers(live, gates)
    attempts.append(after)
    wrong += [a for a in [after] if "REVOKED" not in a.detail]
    controls += [
        Attempt(
            "the gate's own token after the restart", "runs" in live.admin("GET", "/v1/status")
        ),
        Attempt("the refusals say that it was revoked", not wrong, f"{len(attempts)} of them"),
    ]
    return REVOKED.judge(
        attempts,
        controls,
        at_least=3 * len(gone),
        evidence=f"revoked in entry {first['seq']}; asked on two channels and after a restart",
    )
