"""`authority suggest`, `run --suggest`: from a real run's denials to a policy under which it passes."""

from __future__ import annotations

import json
import sys
import tomllib

import pytest

from .lab import Lab

PROGRAM = """
import sys
from authority.agent import Denied, connect
gate = connect()
def attempt(call):
    try: call(); return 'ok'
    except Denied as denied: return denied.code
said = [attempt(lambda: gate.read('data/a.txt')), attempt(lambda: gate.read('data/a.txt')),
        attempt(lambda: gate.write('out/x.txt', b'x')), attempt(lambda: gate.read('.env')),
        attempt(lambda: gate.read('kept/b.txt')), attempt(lambda: gate.http('GET', 'https://h.example/a')),
        attempt(lambda: gate.tool('search', {}))]
print(*said)
"""
POLICY = 'version = 1\n[filesystem]\nread = ["./else/**"]   # mine\ndeny = ["./kept/**"]\n'
ARGV = [sys.executable, "-c", PROGRAM]


def test_from_a_runs_denials_to_a_policy_under_which_it_passes(own: Lab) -> None:
    own.file(".env", "SECRET=1")
    policy = own.policy(POLICY)
    ran = own.run(ARGV, policy)
    assert ran.out.split() == ["E_POLICY_DENY"] * 7
    done = own.cli("suggest", ran.run)
    assert done.returncode == 0, done.stderr
    rules = tomllib.loads(done.stdout)
    assert rules == {
        "filesystem": {"read": ["./data/a.txt"], "write": ["./out/x.txt"]},
        "network": {"http": ["GET https://h.example:443/a"]},
    }
    first = own.denials(run=ran.run)[0]["seq"]
    assert f"# fs.read fs:{own.work}/data/a.txt: entry {first}, 2 times" in done.stdout
    for why in ("looks like a secret", "filesystem.deny[0]", "a person has to say what it is"):
        assert why in done.stdout
    target = own.work / "wider.toml"
    written = own.cli("suggest", ran.run, "--write", str(target), "--json")
    found = json.loads(written.stdout)
    assert found["written"] == str(target)
    assert [each["resource"] for each in found["left"]] == [
        f"fs:{own.work}/.env", f"fs:{own.work}/kept/b.txt", "tool:search",
    ]  # fmt: skip
    assert "# mine" in target.read_text()
    again = own.run(
        [sys.executable, "-c", PROGRAM.replace("https://h.example/a", "data:none")], target
    )
    assert again.out.split()[:5] == ["ok", "ok", "ok", "E_POLICY_DENY", "E_POLICY_DENY"]


def test_a_written_file_harms_no_other(own: Lab) -> None:
    policy = own.policy(POLICY)
    ran = own.run(ARGV, policy)
    before = policy.read_text()
    for target, why in (
        (str(policy), "is there already"),
        ("/tmp/elsewhere.toml", "does not lie beside the policy"),
        (str(own.work / "new.json"), "name says otherwise"),
    ):
        done = own.cli("suggest", ran.run, "--write", target)
        assert done.returncode == 125
        assert why in done.stderr
    assert policy.read_text() == before
    assert own.cli("suggest", "0123456789ab").returncode == 125


def test_a_run_that_says_what_it_lacked(own: Lab) -> None:
    done = own.cli("run", "--suggest", "--", *ARGV)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["E_POLICY_DENY"] * 7
    text = done.stderr[done.stderr.index("# run ") :]
    assert tomllib.loads(text)["filesystem"] == {
        "read": ["./data/a.txt", "./kept/b.txt"], "write": ["./out/x.txt"],
    }  # fmt: skip
    as_json = own.cli("run", "--suggest", "--json", "--write", "made.toml", "--", *ARGV)
    found = json.loads(as_json.stdout)["suggestion"]
    assert found["written"] == "made.toml"
    made = tomllib.loads((own.work / "made.toml").read_text())
    assert made["filesystem"]["read"] == ["./data/a.txt", "./kept/b.txt"]
    passes = own.run(ARGV, own.work / "made.toml")
    assert passes.out.split()[:3] == ["ok", "ok", "ok"]


def test_without_it_a_policy_must_be_named(own: Lab) -> None:
    done = own.cli("run", "--", "true")
    assert done.returncode == 2
    assert "no policy was named" in done.stderr
    wrong = own.cli("run", "--exact", "--", "true")
    assert wrong.returncode == 2


def test_nothing_denied_nothing_suggested(lab: Lab) -> None:
    ran = lab.run("print('quiet')")
    done = lab.cli("suggest", ran.run)
    assert done.returncode == 0
    assert "nothing: no denial that a rule could allow" in done.stdout
    assert tomllib.loads(done.stdout) == {}


@pytest.mark.parametrize("many", [3, 60])
def test_many_files_of_one_folder(lab: Lab, many: int) -> None:
    program = (
        "from authority.agent import Denied, connect\n"
        "gate = connect()\n"
        f"for n in range({many}):\n"
        "    try: gate.read(f'docs/{n}.md')\n"
        "    except Denied: pass\n"
    )
    ran = lab.run([sys.executable, "-c", program], "version = 1\n[budgets]\ndenials = 1000\n")
    text = lab.cli("suggest", ran.run).stdout
    assert tomllib.loads(text)["filesystem"]["read"] == ["./docs/*"]
    assert "BROAD" in text
    assert len(text.splitlines()) < 20
    exact = tomllib.loads(lab.cli("suggest", ran.run, "--exact").stdout)
    assert len(exact["filesystem"]["read"]) == many


LOOKS = """
import os, socket
for name in ('data', 'gone.txt', 'a.txt', '.env'):
    try: os.stat(name); print(name)
    except OSError as error: print(error.strerror)
try: socket.getaddrinfo('named.example', 443)
except OSError as error: print('no name')
"""


def test_a_watched_run_tells_what_it_looked_for(own: Lab) -> None:
    """A program that knows nothing of the gate: files and names that it asks for and can't see."""
    own.file("a.txt", "a")
    own.file(".env", "SECRET=1")
    done = own.cli("run", "--suggest", "--json", "--", sys.executable, "-c", LOOKS)
    assert "No such file" in done.stderr
    assert "a.txt\n" not in done.stderr  # it was not there for the program
    found = json.loads(done.stdout)["suggestion"]
    rules = {each["rule"]: each for each in found["additions"]}
    assert set(rules) == {"./data", "./a.txt", "GET https://named.example/"}
    assert any("a folder" in line for line in rules["./data"]["warnings"])
    why = {each["resource"].rsplit("/", 1)[1]: each["why"] for each in found["left"]}
    assert "looks like a secret" in why[".env"]
    assert "is not there" in why["gone.txt"]
    made = own.file("next.toml", 'version = 1\n[filesystem]\nread = ["./data", "./a.txt"]\n')
    again = own.cli("run", "--suggest", "--policy", str(made), "--", sys.executable, "-c", LOOKS)
    assert again.stdout.splitlines()[0::2][:2] == ["data", "a.txt"]
    assert '"./a.txt"' not in again.stderr


ASKS = """
import socket, urllib.request
from authority.agent import Denied, connect
gate = connect()
for effect, name, arguments in (
    ('fs.write', '.git/hooks/x', {'data': b'x'}), ('fs.read', '/proc/1/environ', {}),
    ('model.chat', 'model:other', {}), ('mcp.read', 'mcp:none/resources/a:b', {}),
    ('tool.call', 'tool:none.x', {'arguments': {}}), ('agent.spawn', 'agent:none', {}),
):
    try: gate.call(effect, name, arguments)
    except Denied as denied: pass
for url in ('http://plain.example/', 'https://tls.example/'):
    try: urllib.request.urlopen(url, timeout=5)
    except OSError: pass
try: socket.getaddrinfo('named.example', 443)
except OSError: pass
"""


def test_why_has_a_word_for_every_denial(lab: Lab) -> None:
    done = lab.cli("run", "--suggest", "--", sys.executable, "-c", ASKS)
    assert done.returncode == 0, done.stderr
    denied = lab.denials(run=lab.log(kind="run.start")[-1]["run"])
    effects = {entry["effect"] for entry in denied}
    assert effects >= {"fs.write", "fs.read", "http.request", "net.connect", "net.resolve"}
    for entry in denied:
        told = json.loads(lab.cli("why", str(entry["seq"]), "--json").stdout)
        assert told["reason"], entry
        assert told["missing"], entry
        if entry["effect"] in {"fs.write", "http.request", "net.connect", "net.resolve"}:
            tomllib.loads(told["snippet"])
            assert told["snippet"], entry
