"""Starters: each loads, is wide nowhere by accident, and a small program of its kind runs under it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from authority.cli.starters import KINDS, starter
from authority.gate import policyfile
from authority.kernel import resources
from authority.kernel.policy import Policy, check_warnings

from .lab import Lab


def made(lab: Lab, kind: str) -> tuple[Path, Policy]:
    """The starter as `init` writes it, and what it says."""
    target = lab.work / f"{kind}.toml"
    if not target.exists():
        options = [] if kind == "program" else ["--for", kind]
        done = lab.cli("init", *options, "--policy", str(target))
        assert done.returncode == 0, done.stderr
        assert f"wrote the starter policy {target}" in done.stdout
    return target, policyfile.read(target).policy


@pytest.mark.parametrize("kind", KINDS)
def test_it_loads_and_every_warning_is_meant(lab: Lab, kind: str) -> None:
    target, policy = made(lab, kind)
    warnings = check_warnings(policy)
    if kind == "coding-agent":
        (warning,) = warnings
        assert "makes the policy's whole folder writable" in warning
    else:
        assert warnings == []
    assert lab.cli("check", "--policy", str(target)).returncode == 0


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_left_alone_when_it_is_there(lab: Lab, kind: str) -> None:
    target, _ = made(lab, kind)
    target.write_text("version = 1\n# mine\n")
    done = lab.cli("init", *([] if kind == "program" else ["--for", kind]), "--policy", str(target))
    assert "left the policy" in done.stdout
    assert target.read_text() == "version = 1\n# mine\n"
    target.unlink()


@pytest.mark.parametrize("kind", KINDS)
def test_secrets_and_the_network_are_closed(lab: Lab, kind: str) -> None:
    _, policy = made(lab, kind)

    def allows(effect: str, resource: str, verb: str = "") -> bool:
        parsed = resources.parse(effect, resource, cwd=str(lab.work))
        return policy.judge(effect, parsed, verb).allowed

    assert allows("fs.read", "data/a.txt")  # the neighbour
    for name in (".env", "x/.env.local", "a/server.pem", ".ssh/id_rsa", "home/.aws/credentials"):
        assert not allows("fs.read", name)
        assert not allows("fs.write", name)
    assert not allows("fs.read", "/etc/passwd")
    assert not allows("http.request", "https://example.com/", "GET")
    assert not allows("net.connect", "tcp://example.com:443")
    assert allows("fs.write", "out/x") is (kind != "mcp")
    assert allows("fs.write", "src/x.py") is (kind == "coding-agent")


def test_a_program_that_is_not_installed_is_not_listed() -> None:
    none = starter("coding-agent", lambda name: None)
    assert "exec = []" in none
    some = starter(
        "coding-agent", lambda name: f"/usr/bin/{name}" if name in {"sh", "git"} else None
    )
    assert 'exec = [\n    "sh", "git",\n]' in some


PROGRAM = """
print(open('data/a.txt').read())
for name in ('out/made.txt', 'src.txt', '.env'):
    try: open(name, 'w').write('x'); print('wrote', name)
    except OSError as error: print('no', name)
"""


@pytest.mark.parametrize("kind", ["program", "python", "mcp"])
def test_a_python_program_runs(lab: Lab, kind: str) -> None:
    target, _ = made(lab, kind)
    lab.file("prog.py", PROGRAM)
    done = lab.cli("run", "--quiet", "--policy", str(target), "--", sys.executable, "prog.py")
    assert done.returncode == 0, done.stderr
    said = "no" if kind == "mcp" else "wrote"
    assert done.stdout == f"hello\n{said} out/made.txt\nno src.txt\nno .env\n"


@pytest.mark.skipif(not shutil.which("node"), reason="no node here")
def test_a_node_program_runs(lab: Lab) -> None:
    target, _ = made(lab, "node")
    lab.file(
        "prog.js",
        "const fs = require('fs'), child = require('child_process');\n"
        "console.log(fs.readFileSync('data/a.txt', 'utf8'), process.env.NODE_ENV);\n"
        "fs.writeFileSync('out/node.txt', 'x');\n"
        "console.log(child.execFileSync('node', ['-p', '1+1']).toString().trim());\n"
        "try { fs.readFileSync('.env') } catch (error) { console.log(error.code) }\n",
    )
    done = lab.cli("run", "--quiet", "--policy", str(target), "--", "node", "prog.js")
    assert (done.returncode, done.stdout) == (0, "hello production\n2\nENOENT\n"), done.stderr
    assert (lab.work / "out" / "node.txt").read_text() == "x"


def test_a_shell_as_a_coding_agent_would_use_it(own: Lab) -> None:
    """It changes the project, not what acts later; what it keeps at home is there the next time."""
    own.work.chmod(0o777)
    target, _ = made(own, "coding-agent")

    def runs(script: str) -> str:
        done = own.cli("run", "--quiet", "--policy", str(target), "--", "bash", "-c", script)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = (
        "git --version && printf 'b\\na\\n' | sort > sorted.txt && cat sorted.txt && "
        "{ echo x > .envrc || echo closed; } 2>/dev/null; echo login > $HOME/state"
    )
    assert runs(first).splitlines()[1:] == ["a", "b", "closed"]
    assert (own.work / "sorted.txt").read_text() == "a\nb\n"
    assert not (own.work / ".envrc").exists()
    assert runs("cat $HOME/state") == "login\n"
