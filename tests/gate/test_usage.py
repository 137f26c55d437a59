"""The command line in process: words that are not understood, help that says enough, whole entries."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
from pathlib import Path

import pytest

from authority.cli import closing, completion, entries
from authority.cli.common import table
from authority.cli.main import COMMANDS, failed, main
from authority.cli.usage import Parser

FOREIGN = "x\x1b[31m\u202egnp\n"
WRONG = [
    *([name, "--no-such-option"] for name in COMMANDS if name not in {"run", "mcp"}),
    *([name, "--no-such-option", "--", "true"] for name in ("run", "mcp")),
    ["run"],
    ["run", "--", "true"],
    ["run", "--isolation", FOREIGN, "--", "true"],
    ["mcp", "--policy", "p.toml"],
    ["attach"],
    ["audit"],
    ["audit", FOREIGN],
    ["audit", "show", FOREIGN],
    ["audit", "show", "-n", "0"],
    ["audit", "show", "-n", "-1"],
    ["audit", "query", "--kind", FOREIGN],
    ["audit", "query", "--since", FOREIGN],
    ["audit", "export", "1"],
    ["policy"],
    ["policy", "diff", "a.toml"],
    ["policy", "recheck"],
    ["check"],
    ["token"],
    ["token", "mint"],
    ["key"],
    ["key", "rotate", "--grace", FOREIGN],
    ["replay"],
    ["replay", "--live", "x"],
    ["rejudge"],
    ["dry"],
    ["dry", "show"],
    ["dry", "list", FOREIGN],
    ["approvals", FOREIGN],
    ["approvals", "--watch", "--json"],
    ["incident"],
    ["incident", "show", FOREIGN],
    ["incident", "cause", "3"],
    ["canary", "plant", "x"],
    ["image", "prune", "--days", FOREIGN],
    ["image", "show", "--force"],
    ["gate", FOREIGN],
    ["completion"],
    ["matrix", "--emulate"],
    ["why", "seventeen"],
    ["init", FOREIGN],
    ["halt", "--reas", "abbreviated"],
    [FOREIGN],
]


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_what_is_not_understood_is_said_in_a_line_and_is_2(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTHORITY_STATE", "/nonexistent")  # none is asked: the words come first
    assert main(words) == 2
    out, err = capsys.readouterr()
    first, *rest = err.splitlines()
    assert (out, len(rest) <= 1, first.startswith("authority: ")) == ("", True, True), err
    assert err.isascii()
    assert "\x1b" not in err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_each_of_its_words(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    out, err = capsys.readouterr()
    assert (left.value.code, err) == (0, "")
    lines = out.splitlines()
    words = [i for i, line in enumerate(lines) if line.startswith("  ") and line[2:3].strip()]
    for at in words:
        told = "  " in lines[at].strip() or (
            lines[at + 1 : at + 2] and lines[at + 1][:4] == " " * 4
        )
        assert told, f"{name}: {lines[at]}"


def test_policy_prove_shows_the_forms_of_statements(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["policy", "prove", "--help"])
    out = capsys.readouterr().out
    assert "never untrusted data to any 'EFFECT' [to 'PATTERN']" in out
    assert "at most NUMBER DIMENSION" in out


def test_an_entry_in_full_has_a_row_for_each_member(capsys: pytest.CaptureFixture[str]) -> None:
    entry = {
        "seq": 7,
        "kind": "denied",
        "time": 1_795_746_365_341_000,
        "run": "b4dbe791a363",
        "code": "E_POLICY_DENY",
        "effect": "fs.read",
        "resource": "fs:/a\\u001b",
        "reason": "no rule",
        "again": False,
        "arguments": {"kept": "inline", "text": "a\nb\x1b]0;t\x07\u202e"},
        "facts": {"changed": 1_795_746_365_341_000, "size": 12, "none": {}},
        "reserve": {"file_bytes": 65_536, "wall_time": 1_500_000},
        "caps": ["aa", "bb"],
        "links": [{"methods": ["fs.*"]}, {}],
        "hash": "0" * 64,
    }
    entries.show(entry)
    out = capsys.readouterr().out
    assert out.isascii()
    assert not any(ord(c) < 32 and c != "\n" for c in out)
    rows = dict(line.split(None, 1) for line in out.splitlines()[3:-1])
    assert rows == {
        "again": "no",
        "arguments.kept": "inline",
        "arguments.text": "a\\u000ab\\u001b]0;t\\u0007\\u202e",
        "caps": "aa, bb",
        "code": "E_POLICY_DENY",
        "effect": "fs.read",
        "facts.changed": "2026-11-27T02:26:05.341000Z",
        "facts.none": "none",
        "facts.size": "12",
        "hash": "0" * 64,
        "links.0.methods": "fs.*",
        "links.1": "none",
        "reason": "no rule",
        "reserve.file_bytes": "65.5 KB",
        "reserve.wall_time": "1.5 s",
        "resource": "fs:/a\\\\u001b",
    }
    assert out.startswith("entry 7: denied, E_POLICY_DENY fs.read")
    assert out.endswith("'authority why 7' explains it\n")
    entries.listed([entry], as_json=True)
    assert json.loads(capsys.readouterr().out) == entry
    entries.listed([], as_json=False)
    assert capsys.readouterr().out == "no entry matches\n"


def test_no_name_acts_on_the_terminal_from_a_table_or_the_end_of_a_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table(FOREIGN, (FOREIGN,), [(FOREIGN,), ("a\\u202eb",)])
    closing.show(
        {
            "run": "b4dbe791a363", "reason": "exited", "code": 0, "done": {"fs.read": 1},
            "denied": {}, "failed": {}, "budgets": {"limit": {}, "spent": {}},
            "first_denials": [
                {"seq": 3, "code": "E_POLICY_DENY", "effect": "fs.read", "resource": FOREIGN}
            ],
            "acts_later": {FOREIGN: "a git hook"},
            "label": {"sources": [FOREIGN], "secrets": [FOREIGN]},
            "protection": {"contained": True, "program": FOREIGN},
            "head": {"seq": 9, "hash": "0" * 64},
        }
    )  # fmt: skip
    assert failed(FOREIGN, FOREIGN, as_json=False) == 125
    said = "".join(capsys.readouterr())
    assert said.isascii()
    assert not any(ord(c) < 32 and c != "\n" for c in said)
    assert said.count("x\\u001b[31m\\u202egnp\\u000a") == 10
    assert "\n  a\\u202eb\n" in said  # what was escaped already stays as it is


def test_a_log_whose_key_is_gone_gets_no_new_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = ["--state", str(tmp_path / "state")]
    assert main(["init", "--no-policy", *state]) == 0
    assert main(["audit", "verify", *state]) == 0  # control
    assert "next:" not in capsys.readouterr().out  # no policy was written to go on with
    key = tmp_path / "state/keys/signing.key"
    kept = key.read_bytes()
    key.unlink()
    for words in (["init"], ["audit", "verify"], ["gate", "start"]):
        assert main([*words, *state]) == 125
        assert "its signing key is gone" in capsys.readouterr().err
    assert not key.exists()
    key.write_bytes(kept)
    key.chmod(0o600)
    assert main(["audit", "verify", *state]) == 0


class _Built(Exception):
    """A command's parser, caught before it parses."""


def _words(made: argparse.ArgumentParser) -> tuple[set[str], dict[str, argparse.ArgumentParser]]:
    words: set[str] = set()
    parts: dict[str, argparse.ArgumentParser] = {}
    for action in made._actions:
        if isinstance(action, argparse._SubParsersAction):
            parts = dict(action.choices)
            words |= parts.keys()
        elif action.option_strings and action.help != argparse.SUPPRESS:
            words |= {word for word in action.option_strings if word.startswith("--")}
        elif not action.option_strings:
            words |= set(action.choices or ())
    return words - {"--help"}, parts


def test_completion_knows_every_word_of_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def caught(made: Parser, *_: object) -> None:
        raise _Built(made)

    monkeypatch.setattr(Parser, "parse_known_args", caught)
    for name in COMMANDS:
        with pytest.raises(_Built) as built:
            importlib.import_module(f"authority.cli.{name}").main([])
        words, parts = _words(built.value.args[0])
        assert set(completion.words_of(name).split()) == words, name
        assert completion.parts_of(name) == [f"{name} {part}" for part in parts]
        for part, made in parts.items():
            assert set(completion.words_of(f"{name} {part}").split()) == _words(made)[0], part


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("aud", "audit"),
        ("audit ver", "verify"),
        ("audit query --ki", "--kind"),
        ("run --isolation n", "namespace"),
        ("run --policy here", "here.toml"),
        ("run --policy here.toml -- ./here", "./here.toml"),
        ("run -- program --po", "--pots"),
        ("doctor --js", "--json"),
    ],
)
def test_completion_in_bash(
    words: str, offered: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("here.toml", "--pots"):
        (tmp_path / name).touch()
    assert main(["completion", "bash"]) == 0
    ask = f"COMP_WORDS=(authority {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _authority\n"
    done = subprocess.run(
        ["bash", "--norc"],
        input=capsys.readouterr().out + ask + 'printf "%s\\n" "${COMPREPLY[@]}"\n',
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.stdout.split(), done.stderr) == ([offered], "")
