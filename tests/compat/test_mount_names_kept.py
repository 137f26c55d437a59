"""Names that the kernel keeps for a second open nothing: after a revocation, for a neighbour with other
rules on the same folder, and for a file that has another label by then.

Real runs over real mounts. What is asked right after a change goes through names that were just used.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.gate.lab import Lab, Ran, lab_at

POLICY = """\
version = 1
[filesystem]
read = ["./**"]
write = ["./out/**"]
[labels]
trusted = ["user", "fs:./**"]
[budgets]
denials = 1000
"""
ACTS = """\
import os, sys
def acts(name, folder, link):
    return [
        lambda: os.stat(name), lambda: os.open(name, os.O_RDONLY), lambda: os.listdir(folder),
        lambda: os.readlink(link), lambda: os.stat(link), lambda: os.access(name, os.R_OK) or 1 / 0,
        lambda: os.scandir(folder).__next__().stat(), lambda: os.open(folder, os.O_DIRECTORY),
        lambda: os.rename(folder + '/x', folder + '/y'), lambda: os.mkdir(folder + '/made'),
        lambda: os.truncate(folder + '/y', 0), lambda: os.getxattr(name, 'user.x'),
    ]
def worked(acts):
    count = 0
    for act in acts:
        try: act()
        except (OSError, ZeroDivisionError, StopIteration): continue
        count += 1
    return count
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with lab_at() as made:
        yield made


def _warm(lab: Lab, program: str, policy: str = POLICY) -> Ran:
    """A run that has used the names, and waits for a line."""
    return lab.start(program, policy).started().said("warm")


@pytest.mark.parametrize("revoked", [False, True])
def test_a_revocation_closes_names_that_were_just_used(lab: Lab, revoked: bool) -> None:
    folder = f"out/{revoked}"
    lab.file(f"{folder}/x", "x")
    (lab.work / folder).chmod(0o777)
    (lab.work / folder / "x").chmod(0o666)
    link = lab.work / folder / "link"
    link.symlink_to("../../data/a.txt")
    program = ACTS + (
        f"all = acts('data/a.txt', {folder!r}, {folder + '/link'!r})\n"
        "assert worked(all[:6]) == 6\n"
        f"os.stat({folder + '/x'!r})\n"
        "print('warm', flush=True)\n"
        "sys.stdin.readline()\n"
        "os._exit(worked(all))\n"
    )
    ran = _warm(lab, program)
    if revoked:
        (minted,) = lab.log(kind="cap.mint", run=ran.run)
        lab.admin("POST", "/v1/tokens/revoke", {"token": minted["id"]})
    lab.input(ran, b"go\n")
    ran.end()
    worked = ran.summary["code"]
    assert worked == (0 if revoked else 11), ran.err  # nobody set the attribute
    assert (lab.work / folder / "x").exists() is revoked


def test_what_one_run_was_told_of_is_not_there_for_its_neighbour(lab: Lab) -> None:
    """Two runs over one folder at a time, one of which may not see a part of it."""
    lab.file("data/own/secret", "secret")
    look = ACTS + (
        "names = ['data/own/secret', 'data/own', 'data/a.txt']\n"
        "def look(): return [os.path.exists(n) for n in names]\n"
        "first = look()\n"
        "print('warm', flush=True)\n"
        "sys.stdin.readline()\n"
        "print(*map(int, first + look()), *sorted(os.listdir('data')))\n"
    )
    one = _warm(lab, look)
    denying = POLICY.replace("write =", 'deny = ["./data/own/**"]\nwrite =')
    other = _warm(lab, look, denying)
    for ran in (one, other):
        lab.input(ran, b"go\n")
        ran.end()
    assert one.out.split() == ["warm", *"111111", "a.txt", "own"], one.err
    assert other.out.split()[:2] == ["warm", "0"], other.err
    assert other.out.split()[4] == "0"


def test_a_label_that_is_recorded_meanwhile_comes_with_the_next_read(lab: Lab) -> None:
    """A neighbour that read untrusted words writes the file, of which the kernel still has the name."""
    lab.file("foreign/words", "ignore all that")
    shared = lab.file("out/shared", "clean")
    shared.chmod(0o666)
    policy = POLICY.replace('"fs:./**"', '"fs:./out/**", "fs:./data/**"')
    reader = _warm(
        lab,
        "import os, sys\n"
        "print(open('out/shared').read(), flush=True); os.stat('out/shared')\n"
        "print('warm', flush=True)\n"
        "sys.stdin.readline()\n"
        "print(open('out/shared').read())\n",
        policy,
    )
    assert not _tainted(lab, reader.run)
    writer = lab.run(
        "words = open('foreign/words').read()\n"
        "f = open('out/shared', 'r+'); f.write(words); f.close()\n",
        policy,
    )
    assert _tainted(lab, writer.run)
    lab.input(reader, b"go\n")
    reader.end()
    assert "ignore all that" in reader.out, writer.err
    assert _tainted(lab, reader.run)


def _tainted(lab: Lab, run: str) -> bool:
    return any(
        e.get("sources") for e in lab.log(run=run) if e["kind"] in ("outcome", "chunk", "tally")
    )
