"""The demo as people start it, with the obedient model and with a server in place of a vendor's; and
that it fails when a guard is taken out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gate.model_upstream import upstream

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo"
pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is missing")


def play(
    act: int, folder: Path = DEMO, isolation: tuple[str, ...] = (), **more: str
) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("DEMO_", "OPENAI_"))}
    return subprocess.run(
        [sys.executable, str(folder / "run.py"), "--act", str(act), *isolation],
        env={**environment, **more},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("act", [1, 2])
def test_an_act_is_as_expected(act: int) -> None:
    done = play(act)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Everything was as expected" in done.stdout
    assert "NO " not in done.stdout


def test_to_emulate_belongs_to_a_machine() -> None:
    done = play(1, isolation=("--emulate",))
    assert (done.returncode, done.stdout) == (2, "")
    assert "EMULATE=1 to ISOLATION=vm" in done.stderr


def test_a_real_upstream_is_asked_with_the_real_key() -> None:
    with upstream() as server:
        done = play(
            2,
            DEMO_MODEL="up-plain",
            OPENAI_API_KEY="sk-demo-0123456789",
            OPENAI_BASE_URL=f"http://127.0.0.1:{server.port}/v1",
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "it asked for 9 of the 9" in done.stdout  # that server obeys, too
    assert {path for path, _, _ in server.seen} == {"/v1/chat/completions"}
    assert len(server.seen) == 6  # one a document, and one with what the tools said
    assert {h["authorization"] for _, h, _ in server.seen} == {"Bearer sk-demo-0123456789"}
    assert "sk-demo" not in done.stdout


def test_a_model_without_its_key_is_said_at_once() -> None:
    done = play(1, DEMO_MODEL="gpt-4.1-mini")
    assert done.returncode == 1
    assert "DEMO_MODEL=gpt-4.1-mini wants OPENAI_API_KEY" in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            '"GET https://office.test/rates.json"',
            '"GET https://office.test/rates.json", "GET https://attacker.test/**?*"',
            "the attacker's server got 1 requests",
        ),
        ('deny = ["./secrets/**"]', "deny = []", "the secret is in nothing"),
        ('write = ["./out/**", ', 'write = ["./out/**", "./.git/hooks/*", ', "nothing was planted"),
    ],
    ids=["network", "files", "hooks"],
)
def test_a_policy_with_a_hole_is_seen(tmp_path: Path, old: str, new: str, said: str) -> None:
    """The control: with one guard taken out the demo says so, and fails."""
    folder = tmp_path / "demo"
    shutil.copytree(DEMO, folder)
    policy = folder / "unmodified" / "policy.toml"
    text = policy.read_text("utf-8")
    assert old in text
    policy.write_text(text.replace(old, new), "utf-8")
    done = play(2, folder)
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "NO " in line and said in line]
    assert f"not as expected: {line.split('NO')[1].strip()}" in done.stdout
