"""Attacks that leave something for later: hooks, editors' tasks, start files, build definitions."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from authority.kernel.policy import load
from authority.kernel.policy_persist import persistent
from authority.kernel.resources import parse

from .fuse_kernel import Kernel
from .seat import OPEN, Seat, number, sit

CLOSED = [
    ".git/hooks/pre-commit",
    ".git/config",
    ".git/config.worktree",
    ".git/modules/a/b/config",
    ".git/modules/a/hooks/post-checkout",
    ".git/worktrees/w/config.worktree",
    "sub/.git/config",
    ".GIT/Hooks/x",
    ".bashrc",
    "home/.zshrc",
    ".profile",
    ".mcp.json",
    ".vscode/tasks.json",
    "deep/er/.vscode/settings.json",
    ".idea/workspace.xml",
    ".envrc",
    ".github/workflows/ci.yml",
    ".gitlab-ci.yml",
    ".circleci/config.yml",
    "Jenkinsfile",
    ".pre-commit-config.yaml",
    ".claude/settings.json",
    ".husky/pre-commit",
    ".gitconfig",
    ".gitmodules",
    ".ssh/authorized_keys",
    ".npmrc",
    "lib/site-packages/evil.pth",
    "sitecustomize.py",
    "usercustomize/__init__.py",
    ".venv/bin/activate",
    ".venv/pyvenv.cfg",
]
OPEN_PATHS = [
    "a.py",
    ".gitignore",
    ".gitattributes",
    ".git/HEAD",
    ".git/objects/ab/cdef",
    ".git/config.lock",
    ".git/refs/heads/hooks",
    ".github/README.md",
    "config",
    "hooks/pre-commit",
    "git/config",
    "activate.py",
    "bin/run",
    "path.pthx",
    "vscode/tasks.json",
]


@pytest.mark.parametrize("name", CLOSED)
def test_the_path_is_closed(name: str) -> None:
    assert persistent("fs.write", parse("fs.write", f"/w/{name}").segments)


@pytest.mark.parametrize("name", OPEN_PATHS)
def test_the_path_is_open(name: str) -> None:
    assert persistent("fs.write", parse("fs.write", f"/w/{name}").segments) is None


def judged(write: list[str], path: str, effect: str = "fs.write") -> bool:
    policy = load(
        f"version = 1\n[filesystem]\nwrite = {write}\n",
        format="toml",
        base="/w",
        name="p",
        read_parent=lambda *_: pytest.fail("nothing is extended"),
    )
    return policy.judge(effect, parse(effect, path)).allowed


@pytest.mark.parametrize(
    ("rule", "path", "opens"),
    [
        ("./**", "/w/.envrc", False),
        ("./.envrc", "/w/.envrc", True),
        ("./**", "/w/.github/workflows/a.yml", False),
        ("./.github/**", "/w/.github/workflows/a.yml", False),
        ("./.github/workflows/**", "/w/.github/workflows/a.yml", True),
        ("./.github/workflows/a.yml", "/w/.github/workflows/a.yml", True),
        ("./**/.envrc", "/w/.envrc", False),
        ("./.git/hooks/pre-commit", "/w/.git/hooks/pre-commit", True),
        ("./.git/hooks/pre-commit", "/w/.git/hooks/post-commit", False),
        ("./.git/**", "/w/.git/hooks/pre-commit", False),
        ("./.vscode/**", "/w/.vscode/tasks.json", True),
    ],
)
def test_a_rule_opens_what_it_names(rule: str, path: str, opens: bool) -> None:
    assert judged([rule], path) is opens
    assert judged([rule, "./**"], path) is opens
    assert judged(["./**"], "/w/ordinary.txt")


@pytest.mark.parametrize("effect", ["fs.modify", "fs.rename", "fs.symlink", "fs.link"])
@pytest.mark.parametrize(
    ("name", "opens"),
    [
        (".venv/pyvenv.cfg", True),
        (".venv/bin/activate", True),
        (".venv/lib/python3/site-packages/a.pth", True),
        (".venv/lib/python3/site-packages/sitecustomize.py", True),
        ("pyvenv.cfg", False),
        (".venv2/pyvenv.cfg", False),
        (".venv/.git/hooks/pre-commit", False),
        (".venv/.git/config", False),
        (".venv/.vscode/tasks.json", False),
        (".venv/.envrc", False),
    ],
)
def test_a_folder_with_execution_is_filled(
    tmp_path: Path, effect: str, name: str, opens: bool
) -> None:
    """What Python loads by itself, and nothing else of the list; without the word for it, nothing."""
    (tmp_path / ".venv").mkdir()
    rules = 'version = 1\n[filesystem]\nwrite = ["./**"]\n'
    for text, wanted in ((rules + '[process]\nexec_from = ["./.venv"]\n', opens), (rules, False)):
        policy = load(
            text,
            format="toml",
            base=str(tmp_path),
            name="p",
            read_parent=lambda *_: pytest.fail("nothing is extended"),
        )
        judgement = policy.judge(effect, parse(effect, f"{tmp_path}/{name}"))
        assert judgement.allowed is wanted, judgement


@pytest.mark.parametrize("name", CLOSED)
def test_nothing_makes_it(name: str) -> None:
    """By creating, by renaming, by a link of either kind, and by a directory on the way."""

    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        folder, _, last = name.rpartition("/")
        seat.file("evil", "evil")
        if folder:
            (seat.work / folder).mkdir(parents=True)
        parent = (await kernel.walk(folder)).node if folder else 1
        evil = (await kernel.walk("evil")).node
        assert await number(kernel.create(parent, last)) == "EACCES"
        assert await number(kernel.mknod(parent, last, 0o100644)) == "EACCES"
        assert await number(kernel.symlink(parent, last, "evil")) == "EACCES"
        assert await number(kernel.link(evil, parent, last)) == "EACCES"
        assert await number(kernel.rename(1, "evil", parent, last)) == "EACCES"
        assert not (seat.work / name).exists()
        (seat.work / name).write_text("the owner's")
        node = (await kernel.walk(name)).node
        assert await number(kernel.open(node, os.O_WRONLY)) == "EACCES"
        assert await number(kernel.setattr(node, size=0)) == "EACCES"
        assert await number(kernel.unlink(parent, last)) == "EACCES"
        assert await number(kernel.link(node, 1, "other-name")) == "EACCES"
        assert await number(kernel.rename(parent, last, 1, "away")) == "EACCES"
        assert await number(kernel.rename(1, "evil", parent, last, 2)) == "EACCES"
        assert (seat.work / name).read_text() == "the owner's"
        assert await kernel.get(name) == b"the owner's"

    sit(body)


def test_a_renamed_parent_does_not_make_it() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        for made in ("x/tasks.json", "y/workflows/ci.yml", "z/hooks/pre-commit", "v/lib/a.txt"):
            seat.file(made, "evil")
        seat.file(".github/keep", "")
        (seat.work / "repo/.git").mkdir(parents=True)
        for old, new in (("x", ".vscode"), ("y", ".github"), ("z", ".git")):
            if new == ".github":
                os.rename(seat.work / ".github", seat.work / "elsewhere")
            assert await number(kernel.rename(1, old, 1, new)) == "EACCES", new
            assert (seat.work / old).is_dir()
        repo = (await kernel.walk("repo/.git")).node
        z = (await kernel.walk("z")).node
        assert await number(kernel.rename(z, "hooks", repo, "hooks")) == "EACCES"
        assert await number(kernel.rename(1, "z", (await kernel.walk("repo")).node, ".git", 2)) == (
            "EACCES"
        )
        assert await number(kernel.rename(1, "v", 1, "w")) == ""  # the control

    sit(body)


def test_a_folder_that_holds_it_is_not_moved() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        seat.file("project/.git/hooks/pre-commit", "x", 0o755)
        seat.file("project/.git/config", "[core]\n")
        assert await number(kernel.rename(1, "project", 1, "moved")) == "EACCES"
        seat.file("env/lib/a.pth", "")
        assert await number(kernel.rename(1, "env", 1, "moved")) == "EACCES"

    sit(body)


async def repository(seat: Seat, name: str = "r") -> int:
    """A repository as `git init` makes it; the node of its `.git`."""
    kernel = seat.kernel
    folder = await kernel.mkdir(1, name)
    git = await kernel.mkdir(folder.node, ".git")
    for each in ("hooks", "objects", "refs"):
        await kernel.mkdir(git.node, each)
    await kernel.put(f"{name}/.git/HEAD", b"ref: refs/heads/main\n")
    return git.node


PLAIN = b'[core]\n\trepositoryformatversion = 0\n\tbare = false\n[remote "origin"]\n\turl = http://h/r\n'


def test_in_an_own_repository_a_plain_configuration_gets_its_name() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        git = await repository(seat)
        await kernel.put("r/.git/config.lock", PLAIN)
        await kernel.rename(git, "config.lock", git, "config")
        assert (seat.work / "r/.git/config").read_bytes() == PLAIN
        config = (await kernel.walk("r/.git/config")).node
        await kernel.setattr(config, mode=0o755)  # git tries whether modes count
        sample, fh = await kernel.create(
            (await kernel.walk("r/.git/hooks")).node, "pre-commit.sample", mode=0o755
        )
        await kernel.write(sample.node, fh, b"#!/bin/sh\n")
        await kernel.close(sample.node, fh)
        assert sample.attr.mode & 0o777 == 0o644
        assert set(seat.mounts.written_to_act_later()) == {
            f"fs:{seat.work}/r/.git/{name}"
            for name in ("config", "hooks", "hooks/pre-commit.sample")
        }
        await kernel.rename(1, "r", 1, "renamed")
        assert (seat.work / "renamed/.git/config").exists()

    sit(body)


BAD = [
    b"[core]\n\tfsmonitor = ./evil\n",
    b"[core]\n\tsshCommand = evil\n",
    b"[core]\n\thooksPath = ../h\n",
    b"[core]\n\tpager = evil\n",
    b"[core]\n\teditor = evil\n",
    b"[alias]\n\tst = !evil\n",
    b'[filter "x"]\n\tclean = evil\n',
    b'[filter "x"]\n\tprocess = evil\n',
    b'[diff "x"]\n\ttextconv = evil\n',
    b"[diff]\n\texternal = evil\n",
    b'[merge "x"]\n\tdriver = evil\n',
    b"[credential]\n\thelper = !evil\n",
    b"[gpg]\n\tprogram = evil\n",
    b"[include]\n\tpath = evil\n",
    b'[includeIf "gitdir:/"]\n\tpath = evil\n',
    b'[protocol "ext"]\n\tallow = always\n',
    b'[remote "o"]\n\tuploadpack = evil\n',
    b'[remote "o"]\n\turl = ext::sh -c evil\n',
    b'[remote "o"]\n\turl = "ext::sh -c evil"\n',
    b'[submodule "s"]\n\tupdate = !evil\n',
    b"[core]fsmonitor=evil\n",
    b"[core] bare = false\n",
    b"[CORE]\n\tFSMonitor\n",
    b"[core]\n\tbare = \\\nfalse\n",
    b'[core "x"]\n\tfsmonitor = evil\n',
    b"[core.x]\n\tbare = false\n",
    b"\xef\xbb\xbf[core]\n\tbare = false\n",
    b"[core]\n\tbare = false\x00\n",
    b"\tbare = false\n",
    b"[core]\r\tfsmonitor = evil\n",
    b"[core]\n" + b"\tbare = false\n" * 10_000,
]


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_a_configuration_that_could_name_a_program_gets_no_name(text: bytes) -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        git = await repository(seat)
        await kernel.put("r/.git/config.lock", text)
        assert await number(kernel.rename(git, "config.lock", git, "config")) == "EACCES"
        assert not (seat.work / "r/.git/config").exists()
        refused = (await seat.log(kind="outcome", status="aborted"))[-1]
        assert "configuration" in refused["facts"]["why"]

    sit(body)


def test_no_other_way_to_an_own_configuration_or_an_executable_hook() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        git = await repository(seat)
        hooks = (await kernel.walk("r/.git/hooks")).node
        await kernel.put("r/.git/config.lock", PLAIN)
        await kernel.put("tool", b"#!/bin/sh\n", 0o755)
        tool = (await kernel.walk("tool")).node
        # written in place, by a second name, by an open writer
        assert await number(kernel.create(git, "config")) == "EACCES"
        assert await number(kernel.symlink(git, "config", "x")) == "EACCES"
        lock = await kernel.walk("r/.git/config.lock")
        writing = await kernel.open(lock.node, os.O_WRONLY)
        assert await number(kernel.rename(git, "config.lock", git, "config")) == "EACCES"
        await kernel.close(lock.node, writing)
        await kernel.link(lock.node, 1, "second")
        assert await number(kernel.rename(git, "config.lock", git, "config")) == "EACCES"
        await kernel.unlink(1, "second")
        assert await number(kernel.rename(git, "config.lock", git, "config")) == ""
        config = (await kernel.walk("r/.git/config")).node
        assert await number(kernel.open(config, os.O_WRONLY)) == "EACCES"
        assert await number(kernel.link(config, 1, "second")) == "EACCES"
        await kernel.put("evil", b"[core]\n\tfsmonitor = x\n")
        assert await number(kernel.rename(1, "evil", git, "config", 2)) == "EACCES"
        assert await number(kernel.create(git, "commondir")) == "EACCES"
        # hooks
        assert await number(kernel.rename(1, "tool", hooks, "pre-commit")) == "EACCES"
        assert await number(kernel.link(tool, hooks, "pre-commit")) == "EACCES"
        assert await number(kernel.symlink(hooks, "pre-commit", "../../../tool")) == "EACCES"
        hook, fh = await kernel.create(hooks, "pre-commit", mode=0o755)
        await kernel.close(hook.node, fh)
        assert await number(kernel.setattr(hook.node, mode=0o755)) == "EACCES"
        assert (seat.work / "r/.git/hooks/pre-commit").stat().st_mode & 0o111 == 0
        await kernel.mkdir(1, "h")
        await kernel.put("h/post-checkout", b"#!/bin/sh\n", 0o755)
        await kernel.unlink(hooks, "pre-commit")
        await kernel.rmdir(git, "hooks")
        assert await number(kernel.rename(1, "h", git, "hooks")) == "EACCES"
        # a directory that was made under another name is no own repository
        await kernel.mkdir(1, "o")
        other = await kernel.mkdir(1, "fake")
        await kernel.mkdir(other.node, "hooks")
        await kernel.put("fake/hooks/pre-commit", b"#!/bin/sh\n", 0o755)
        o = (await kernel.walk("o")).node
        r = (await kernel.walk("r")).node
        assert await number(kernel.rename(1, "fake", o, ".git")) == "EACCES"
        assert await number(kernel.rename(1, "fake", r, ".git", 2)) == "EACCES"
        assert await number(kernel.symlink(o, ".git", "../fake")) == "EACCES"
        assert await number(kernel.create(o, ".git")) == "EACCES"

    sit(body)


@pytest.mark.parametrize("flags", [0, 2], ids=["over an empty one", "in exchange"])
def test_a_repository_that_was_filled_under_another_name_does_not_come_back(flags: int) -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        r = (await kernel.mkdir(1, "r")).node
        await kernel.mkdir(r, ".git")
        await kernel.rename(r, ".git", r, "away")
        await kernel.mkdir((await kernel.walk("r/away")).node, "hooks")
        await kernel.put("r/away/hooks/pre-commit", b"#!/bin/sh\n", 0o755)
        await kernel.put("r/away/config", b"[core]\n\tfsmonitor = ./evil\n")
        await kernel.mkdir(r, ".git")
        assert await number(kernel.rename(r, "away", r, ".git", flags)) == "EACCES"
        assert not os.listdir(seat.work / "r/.git")
        # The control: the one that always had its name is still its own.
        git = (await kernel.walk("r/.git")).node
        await kernel.put("r/.git/config.lock", PLAIN)
        assert await number(kernel.rename(git, "config.lock", git, "config")) == ""

    sit(body)


def test_a_repository_that_was_there_before_stays_closed() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        seat.file("r/.git/config", "[core]\n")
        (seat.work / "r/.git/hooks").mkdir()
        git = (await kernel.walk("r/.git")).node
        await kernel.put("r/.git/config.lock", PLAIN)
        assert await number(kernel.rename(git, "config.lock", git, "config")) == "EACCES"
        assert (
            await number(kernel.create((await kernel.walk("r/.git/hooks")).node, "x")) == "EACCES"
        )
        assert await number(kernel.put("r/.git/index", b"x")) == ""
        assert seat.mounts.written_to_act_later() == {}

    sit(body)


def test_what_python_loads_is_open_in_an_own_folder_alone() -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        (seat.work / "old").mkdir()
        old = (await kernel.walk("old")).node
        assert await number(kernel.create(old, "a.pth")) == "EACCES"
        await kernel.mkdir(1, "new")
        await kernel.put("new/a.pth", b"x")
        new = (await kernel.walk("new")).node
        await kernel.mkdir(new, "lib")
        await kernel.put("new/lib/b.tmp", b"x")
        lib = (await kernel.walk("new/lib")).node
        await kernel.rename(lib, "b.tmp", lib, "b.pth")
        assert await number(kernel.rename(new, "a.pth", old, "a.pth")) == "EACCES"
        assert await number(kernel.rename(new, "lib", old, "lib")) == "EACCES"
        assert await number(kernel.create(new, ".envrc")) == "EACCES", "closed in any folder"
        # A folder that was there before does not become the run's own by moving it into one.
        seat.file("theirs/x.txt", "")
        await kernel.rename(1, "theirs", new, "theirs")
        assert await number(kernel.rename(new, "theirs", 1, "theirs")) == ""

    sit(body)


def _nothing(_kernel: Kernel) -> Awaitable[None]:
    return asyncio.sleep(0)


async def _made_anew(kernel: Kernel) -> None:
    lib = (await kernel.walk("env/lib")).node
    await kernel.rename(lib, "packages", 1, "old")
    await kernel.mkdir(lib, "packages")


async def _made_anew_above(kernel: Kernel) -> None:
    env = (await kernel.walk("env")).node
    await kernel.rename(env, "lib", 1, "old")
    await kernel.mkdir((await kernel.mkdir(env, "lib")).node, "packages")


async def _moved_there(kernel: Kernel) -> None:
    lib = (await kernel.walk("env/lib")).node
    await kernel.mkdir(1, "mine")
    await kernel.rename(lib, "packages", 1, "old")
    await kernel.rename(1, "mine", lib, "packages")


async def _moved_over(kernel: Kernel) -> None:
    lib = (await kernel.walk("env/lib")).node
    await kernel.mkdir(1, "mine")
    packages = (await kernel.walk("env/lib/packages")).node
    await kernel.unlink(packages, "x.py")
    await kernel.rename(1, "mine", lib, "packages")


async def _exchanged(kernel: Kernel) -> None:
    lib = (await kernel.walk("env/lib")).node
    await kernel.mkdir(1, "mine")
    await kernel.rename(1, "mine", lib, "packages", 2)


async def _removed(kernel: Kernel) -> None:
    lib = (await kernel.walk("env/lib")).node
    await kernel.unlink((await kernel.walk("env/lib/packages")).node, "x.py")
    await kernel.rmdir(lib, "packages")
    await kernel.mkdir(lib, "packages")


@pytest.mark.parametrize(
    "replace",
    [_nothing, _made_anew, _made_anew_above, _moved_there, _moved_over, _exchanged, _removed],
)
def test_a_folder_in_the_place_of_another_is_not_the_runs_own(
    replace: Callable[[Kernel], Awaitable[None]],
) -> None:
    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        seat.file("env/lib/packages/x.py")
        await replace(kernel)
        assert await number(kernel.put("env/lib/packages/evil.pth", b"import os")) == "EACCES"
        # Nor does it arrive there with such a file in it.
        await kernel.mkdir(1, "full")
        await kernel.put("full/evil.pth", b"import os")  # the control: a folder of its own
        lib = (await kernel.walk("env/lib")).node
        assert await number(kernel.rename(1, "full", lib, "packages", 2)) == "EACCES"
        assert (
            await number(kernel.rename(1, "full", lib, "more"))
            == ("", "EACCES")[replace is _made_anew_above]
        )

    sit(body)


def test_a_policy_that_names_it_opens_it() -> None:
    policy = OPEN.replace('write = ["./**"]', 'write = ["./**", "./.vscode/**", "./.git/config"]')

    async def body(seat: Seat) -> None:
        kernel = seat.kernel
        await kernel.mkdir(1, ".vscode")
        await kernel.put(".vscode/tasks.json", b"{}")
        await kernel.mkdir(1, ".git")
        await kernel.put(".git/config", b"[core]\n\tfsmonitor = x\n")
        assert await number(kernel.create(1, ".envrc")) == "EACCES"

    sit(body, policy)
