"""What a stranger checks with the log's public key and one file: a proof of an entry, or an export.

Everything that is changed in either is noticed; beside it the same file, unchanged, holds.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from authority.audit import checkpoints
from authority.audit.prove import export, prove
from authority.cli.main import main
from authority.kernel.canonical import encode

from .lab import lab_at


class Given(NamedTuple):
    """What was handed over: the export of entries 1 to 4, the proof of entry 3, the key's text."""

    export: bytes
    proof: dict[str, Any]
    key: str


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    log = tmp_path_factory.mktemp("kept") / "log"
    with lab_at() as lab:
        lab.run("from authority.agent import connect\nconnect().read('data/a.txt')\n")
        lab.cli("gate", "stop", "--force")  # a checkpoint over all of it
        key = checkpoints.load_key(lab.directory.signing_key).public
        shutil.copytree(lab.directory.log, log)
    return Given(b"".join(export(log, 1, 4, key)), prove(log, 3, key), key.to_text())


@pytest.fixture
def verify(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, Any]]:
    monkeypatch.setenv("AUTHORITY_STATE", str(tmp_path / "nowhere"))

    def run(data: bytes, *key: str) -> tuple[int, Any]:
        file = tmp_path / "handed over"
        file.write_bytes(data)
        words = [word for text in key for word in ("--key", text)]
        code = main(["audit", "verify", "--proof", str(file), "--json", *words])
        out = capsys.readouterr().out
        return code, json.loads(out) if out else None

    return run


def test_what_was_handed_over_holds(given: Given, verify: Callable[..., tuple[int, Any]]) -> None:
    code, told = verify(given.export, given.key)
    assert (code, told["ok"], told["entries"]) == (0, True, 4)
    assert (told["first"], told["last"]) == (1, 4)
    for text in (json.dumps(given.proof, indent=2).encode(), encode(given.proof)):
        code, told = verify(text, given.key)
        assert (code, told["first"], told["last"]) == (0, 3, 3)
        assert told["entry"] == json.loads(given.proof["line"])


def lines(data: bytes, change: Callable[[list[bytes]], Any]) -> bytes:
    rows = data.splitlines(keepends=True)
    change(rows)
    return b"".join(rows)


def header(**members: Any) -> Callable[[list[bytes]], None]:
    def change(rows: list[bytes]) -> None:
        rows[0] = encode({**json.loads(rows[0]), **members}) + b"\n"

    return change


EXPORTS: dict[str, Callable[[list[bytes]], Any]] = {
    "a byte": lambda rows: rows.__setitem__(2, rows[2].replace(b'"run"', b'"ruN"')),
    "a line gone": lambda rows: rows.pop(2),
    "the last line gone": lambda rows: rows.pop(4),
    "lines exchanged": lambda rows: rows.insert(2, rows.pop(3)),
    "no proof": lambda rows: rows.pop(),
    "nothing but its header": lambda rows: rows.__delitem__(slice(1, None)),
    "something behind it": lambda rows: rows.append(rows[-1]),
    "a range backwards": header(first=4, last=1),
    "an empty range": header(first=4, last=3),
    "a range of texts": header(first="1", last="4"),
    "another range": header(first=0, last=3),
    "another past": header(previous="00" * 32),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_that_was_changed(
    name: str, given: Given, verify: Callable[..., tuple[int, Any]]
) -> None:
    changed = lines(given.export, EXPORTS[name])
    assert changed != given.export
    code, told = verify(changed, given.key)
    assert (code, told["ok"]) == (1, False)
    assert told["problem"]


PROOFS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "another number": lambda proof: {**proof, "seq": 2},
    "another line": lambda proof: {**proof, "line": proof["line"].replace('"kid"', '"kiD"')},
    "a shorter path": lambda proof: {**proof, "path": proof["path"][1:]},
    "a path of numbers": lambda proof: {**proof, "path": [1]},
    "no checkpoint": lambda proof: {k: v for k, v in proof.items() if k != "checkpoint"},
    "another size": lambda proof: {
        **proof, "checkpoint": proof["checkpoint"].replace("\n", "\n1", 1)
    },
    "something else": lambda _proof: {},
}  # fmt: skip


@pytest.mark.parametrize("name", PROOFS)
def test_a_proof_that_was_changed(
    name: str, given: Given, verify: Callable[..., tuple[int, Any]]
) -> None:
    changed = PROOFS[name](given.proof)
    assert changed != given.proof
    code, told = verify(encode(changed), given.key)
    assert (code, told["ok"]) == (1, False)


def test_another_key_and_no_key(
    tmp_path: Path, given: Given, verify: Callable[..., tuple[int, Any]]
) -> None:
    other = checkpoints.create_key(tmp_path / "key", given.key.split("+")[0]).public.to_text()
    for data in (given.export, encode(given.proof)):
        assert verify(data, given.key)[0] == 0
        assert verify(data, other)[0] == 1
        assert verify(data)[0] == 2


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"\xff\x1b[2J", b"[" * 100_000, b"{}\n{}\n", b"1" * 9999]
)
def test_what_is_neither(data: bytes, given: Given, verify: Callable[..., tuple[int, Any]]) -> None:
    code, told = verify(data, given.key)
    assert (code, told["ok"]) == (1, False)
    assert told["problem"].isprintable()
