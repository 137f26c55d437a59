"""`authority policy`: exit codes, certificates that are checked again, and what a changed one gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.gate.lab import Lab

from authority.cli.main import main
from authority.gate.client import GateError
from authority.proof import certificate as certificates
from authority.proof.certificate import CertificateError

OLD = """\
version = 1
[filesystem]
read = ["./docs/**"]
[network]
http = ["GET https://api.example/**"]
deny = ["*.internal"]
"""
TRUE = "never 'http.request' to 'https://*.internal/**'"
FALSE = "never 'fs.read' to './docs/b*'"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("old.toml").write_text(OLD)
    Path("new.toml").write_text(OLD.replace("./docs/**", "./doc*/**"))
    Path("less.toml").write_text(OLD.replace("./docs/**", "./docs/x"))
    Path("bad.toml").write_text(OLD.replace("./docs/**", "fs:/d/%C3*"))
    Path("true.txt").write_text(f"# these hold\n{TRUE}\nnever 'fs.write'\n")
    Path("false.txt").write_text(f"{TRUE}\n{FALSE}\n")
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code = main(["policy", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_exit_codes_say_proved_disproved_and_undecided(
    files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "prove", "true.txt", "--policy", "old.toml")[0] == 0
    code, found = run(capsys, "prove", "false.txt", "--policy", "old.toml")
    assert code == 1
    assert [c["proved"] for c in found["claims"]] == [True, False]
    (witness,) = found["claims"][1]["witnesses"]
    assert witness["resource"] == f"fs:{files}/docs/b"
    code, found = run(capsys, "prove", "--statement", FALSE, "--policy", "bad.toml")
    assert code == 125
    assert "not UTF-8" in found["error"]
    code, found = run(capsys, "prove", "--statement", "never say never", "--policy", "old.toml")
    assert code == 125
    assert main(["policy", "prove", "--policy", "old.toml"]) == 2
    assert "nothing to prove" in capsys.readouterr().err


def test_diff_with_and_without_proof(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "diff", "old.toml", "less.toml", "--prove")[0] == 0
    code, found = run(capsys, "diff", "old.toml", "new.toml", "--prove")
    assert code == 1
    assert found["claims"][0]["witnesses"][0]["resource"] == f"fs:{files}/doc"
    good = "'fs.*' to './doc*/**'"
    assert run(capsys, "diff", "old.toml", "new.toml", "--prove", "--except", good)[0] == 0
    assert run(capsys, "diff", "old.toml", "new.toml")[0] == 1
    # The plain difference errs towards showing; what it shows is no proof of being wider.
    assert run(capsys, "diff", "old.toml", "less.toml")[0] == 1
    assert run(capsys, "diff", "old.toml", "old.toml")[0] == 0
    assert main(["policy", "diff", "old.toml", "new.toml", "--except", good]) == 2


def test_rules_that_do_nothing(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = run(capsys, "dead", "old.toml")
    assert (code, [d["state"] for d in found]) == (1, ["dead"])
    Path("live.toml").write_text('version = 1\n[filesystem]\nread = ["./a"]\n')
    assert run(capsys, "dead", "live.toml")[0] == 0


def test_a_certificate_is_checked_again(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys, "prove", "false.txt", "--policy", "old.toml", "--certificate", "c.json")
    code, found = run(capsys, "recheck", "c.json")
    assert (code, found["rechecked"]) == (1, True)
    assert run(capsys, "recheck", "c.json", "--policy", "old.toml")[0] == 1
    code, found = run(capsys, "recheck", "c.json", "--policy", "new.toml")
    assert code == 125
    assert "other policies" in found["error"]


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        (TRUE, "never 'http.request'", "checks out differently"),
        ("/docs/b", "/docs/bb", "checks out differently"),
        ('"proved":false', '"proved":true', "checks out differently"),
        (r"\"./docs/**\"", r"\"./out/**\"", "not the one that it names"),
        ("automata/1", "automata/9", "another format or engine"),
        ('"base"', '"bass"', "no certificate"),
        ('"claims":[', '"claims":[],"x":[', "no certificate"),
    ],
)
def test_a_changed_certificate_is_refused(
    files: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, part: str
) -> None:
    run(capsys, "prove", "false.txt", "--policy", "old.toml", "--certificate", "c.json")
    text = Path("c.json").read_text()
    assert old in text
    Path("c.json").write_text(text.replace(old, new, 1))
    code, found = run(capsys, "recheck", "c.json")
    assert code == 125
    assert part in found["error"]


def test_a_certificate_that_claims_nothing_or_does_not_fit_is_refused(files: Path) -> None:
    import msgspec

    from authority.gate import policyfile

    policy = policyfile.read(files / "old.toml").policy
    good = certificates.prove(policy, [TRUE], base=str(files), version="x")
    certificates.recheck(good)
    for changes in ({"claims": ()}, {"policies": good.policies * 2}, {"policies": ()}):
        with pytest.raises(CertificateError):
            certificates.recheck(msgspec.structs.replace(good, **changes))


def test_a_certificate_is_recorded_after_the_gate_checked_it(
    own: Lab, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = ["--state", str(own.directory.root)]
    code, found = run(
        capsys, "prove", "true.txt", "--policy", "old.toml", "--certificate", "c.json", "--record",
        *state,
    )  # fmt: skip
    assert code == 0
    (entry,) = own.log(kind="proof")
    assert entry["seq"] == found["seq"]
    assert (entry["verdict"], entry["certificate"]) == ("proved", found["certificate"])
    assert entry["statements"][0] == TRUE
    assert run(capsys, "recheck", "--entry", str(entry["seq"]), *state)[0] == 0
    # The policy can be named by its digest from now on: the store has it.
    digest = found["policies"][0]["digest"]
    assert run(capsys, "prove", "true.txt", "--policy", digest, *state)[0] == 0
    assert run(capsys, "prove", "true.txt", "--policy", "0" * 64, *state)[0] == 125
    wrong = Path("c.json").read_text().replace("never 'fs.write'", "never 'fs.read'")
    with pytest.raises(GateError, match="checks out differently"):
        own.admin("POST", "/v1/proofs", {"certificate": wrong})
    with pytest.raises(GateError, match="no certificate"):
        own.admin("POST", "/v1/proofs", {"certificate": "{}"})
    assert len(own.log(kind="proof")) == 1
    assert run(capsys, "recheck", "--entry", "0", *state)[0] == 125
