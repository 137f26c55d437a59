"""How quickly a replay answers: 10,000 recorded requests matched and answered from the log.

Rules
- One call a request, as the channel makes it: `Stage.submit` with a request that was read already, to
  the answer that goes back (its value decoded from the recorded body, and its receipt). No sockets, no
  sandbox, no program: those cost what they cost in a run.
- Requests are reads of 40 bytes with their outcomes, writes that are acknowledged, and one denial in
  ten. Processor time; the best of some rounds, each with a recording of its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from pathlib import Path
from typing import Any

COUNT = 10_000
TARGET = 50_000


def recorded(count: int) -> tuple[list[bytes], list[Any], Any]:
    """Stored lines of a run, the same requests as they are asked again, and its policy."""
    from authority.gate.reader import Asked, short_body
    from authority.kernel import capabilities, entries, resources
    from authority.kernel.capabilities import MacKey, Restriction
    from authority.kernel.facts import Facts, Request, request_digest
    from authority.kernel.policy import load
    from authority.kernel.requests import EFFECTS

    policy = load("version = 1\n", format="toml", base="/work", name="p", read_parent=_no_parent)
    raw_token = capabilities.mint(
        MacKey("k", b"k" * 32), id="c" * 32, run="run", restriction=Restriction()
    )
    token = capabilities.parse(raw_token)
    rows: list[Any] = [
        entries.RunStart(run="run", capability="c" * 32, policy=policy.digest, seed="1")
    ]
    asks = []
    encoder = _sorted()
    for n in range(1, count + 1):
        effect = "fs.write" if n % 5 == 0 else "fs.read"
        resource = resources.parse(effect, f"/work/docs/{n % 97}.txt")
        raw = {"data": base64.b64encode(b"x" * 40).decode(), "create_only": False}
        if effect == "fs.read":
            raw = {"offset": n, "length": None}
        arguments = encoder(raw)
        digest = request_digest(effect, resource.text, "", arguments)
        common = {
            "run": "run", "effect": effect, "resource": resource.text, "stream": 1, "n": n,
            "request": digest, "rule": "read[0]", "arguments": short_body(arguments),
        }  # fmt: skip
        if n % 10 == 0:
            denied = entries.Denied(
                **common,
                caps=["c" * 32],
                code="E_POLICY_DENY",
                layer="policy",
                number=n // 10,
                reason="no",
            )
            rows.append(denied)
        else:
            rows.append(entries.Admit(**common, caps=["c" * 32]))
            value = {"data": base64.b64encode(b"y" * 40).decode(), "size": 40, "eof": True}
            body = short_body(json.dumps(value if effect == "fs.read" else {"size": 40}).encode())
            rows.append(entries.Outcome(run="run", of=len(rows) - 1, status="done", result=body))
        spec = EFFECTS[effect].arguments
        request = Request(
            "run", 1, n, effect, resource.text, digest, resource, arguments=spec, token=token
        )
        asks.append(Asked(request, Facts(0, mac_ok=True), arguments))
    return _stored(rows), asks, policy


def _sorted() -> Any:
    import msgspec

    return msgspec.json.Encoder(order="sorted").encode


def _no_parent(_base: str, _name: str) -> Any:
    raise AssertionError


def _stored(rows: list[Any]) -> list[bytes]:
    from authority.audit.chain import seal
    from authority.kernel import entries

    lines, previous = [], bytes(32)
    for seq, entry in enumerate(rows):
        entry.seq, entry.batch, entry.time = seq, seq, 1
        previous, line = seal(previous, entries.encode(entry))
        lines.append(line[:-1])
    return lines


def run(quick: bool) -> list[dict[str, Any]]:
    """One row."""
    from authority.isolation import probe
    from authority.recorded import recording
    from authority.recorded.bodies import Kept
    from authority.replay.stage import Stage, Wish

    lines, asks, policy = recorded(COUNT)
    host = probe()
    times = []
    digest = hashlib.sha256()
    for _ in range(3 if quick else 7):
        stage = Stage(
            recording.read(lines, "run"), policy, Kept(None), None, Wish({}), host, Path("/")
        )
        answers: list[Any] = []
        begin = time.process_time()
        for asked in asks:
            stage.submit(asked, answers.append)
        times.append(time.process_time() - begin)
        if len(answers) != COUNT or stage.divergence is not None:
            raise AssertionError(f"{len(answers)} answers, {stage.divergence}")
        digest.update(str(answers[0]).encode())
    rate = COUNT / min(times)
    return [
        {
            "name": "replay: requests matched and answered",
            "value": round(rate),
            "unit": "requests/s",
            "target": f">= {TARGET:,}",
            "ok": rate >= TARGET,
            "detail": f"{COUNT:,} recorded requests, one call each, without sockets",
        }
    ]
