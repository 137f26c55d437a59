"""Time, chance and names from the gate: recorded as they were given; what a run was given is kept."""

from __future__ import annotations

import base64
import json

import pytest

from authority.audit import query
from authority.audit.errors import BodyMissing
from authority.audit.store import ContentStore
from authority.gate import given
from authority.kernel import entries

from .lab import OPEN, Lab

ASKS = """\
import json, os
from authority.agent import connect
gate = connect()
print(json.dumps([gate.time(), gate.random(32).hex(), gate.uuid(), hash("a text"), os.environ]
                 , default=dict))
"""


def test_what_was_answered_stands_in_the_log(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-1")
    policy = OPEN + '[process]\npass_env = ["SOME_KEY"]\nenv = { MODE = "test" }\n'
    ran = lab.run(ASKS, policy)
    time, random, name, hashed, environment = json.loads(ran.out)
    found = [e for e in map(entries.decode, query.lines(lab.directory.log)) if e.run == ran.run]
    effects = {e.seq: e.effect for e in found if isinstance(e, entries.Admit)}
    given_back = {
        effects[e.of]: json.loads(e.result.text)
        for e in found
        if isinstance(e, entries.Outcome) and e.result is not None and e.of in effects
    }
    assert given_back["sys.time"]["us"] / 1_000_000 == time
    assert base64.b64decode(given_back["sys.random"]["data"]).hex() == random
    assert given_back["sys.uuid"]["uuid"] == name
    (start,) = (e for e in found if isinstance(e, entries.RunStart))
    assert start.seed == environment["PYTHONHASHSEED"]
    assert hashed
    assert start.given is not None
    assert b"sk-1" not in entries.encode(start)
    store = ContentStore(lab.directory.store, keys=lab.directory.keys / "sealed")
    assert given.read(store, start.given) == {"SOME_KEY": "sk-1"}
    (lab.directory.keys / "sealed" / start.given.digest).unlink()
    with pytest.raises(BodyMissing):
        given.read(store, start.given)


def test_a_seed_of_the_policy_stays(lab: Lab) -> None:
    policy = OPEN + '[process]\nenv = { PYTHONHASHSEED = "7" }\n'
    ran = lab.run(ASKS, policy)
    assert json.loads(ran.out)[4]["PYTHONHASHSEED"] == "7"
