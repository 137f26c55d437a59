"""From a policy's rules to the folders that are mounted: the least that hold all, never too much."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from authority.gate import places
from authority.gate.statedir import StateDir, StateDirError
from authority.isolation import IsolationRefused, notify, probe
from authority.isolation.places import Mount, inside
from authority.kernel.policy import Policy, Source, load

BASE = "/home/u/project"


def policy(read: list[str], write: list[str] = [], extra: str = "", *base: str) -> Policy:  # noqa: B006
    texts = [f"version = 1\n[filesystem]\nread = {read!r}\nwrite = {write!r}\n{extra}", *base]
    if base:
        texts[0] = texts[0].replace("version = 1", 'version = 1\nextends = "1"')

    def parent(folder: str, name: str) -> Source:
        return Source(texts[int(name)], "toml", folder, name)

    return load(texts[0], format="toml", base=BASE, name="p.toml", read_parent=parent)


@pytest.mark.parametrize(
    ("read", "write", "folders"),
    [
        ([], [], []),
        (["./docs/**"], [], [BASE]),
        (["./a.txt"], ["./out/**"], [BASE]),
        (["./**"], ["./**"], [BASE]),
        (["/data/in/**"], [], ["/data/in"]),
        (["/data/in/one.txt"], [], ["/data/in"]),
        (["/data/in/*.txt", "/data/in/deep/**"], [], ["/data/in"]),
        (["/data/a/**"], ["/data/b/**"], ["/data/a", "/data/b"]),
        (["/data/**"], ["/data/b/**"], ["/data"]),
        (["../shared/**", "./x"], [], [BASE, "/home/u/shared"]),
        (["/home/u/**"], [], ["/home/u"]),
        (["/home/u/*/src/**"], [], ["/home/u"]),
        (["/etc/app/**"], [], ["/etc/app"]),
        (["/usr/share/dict/words"], [], ["/usr/share/dict"]),
        (["/var/**"], [], ["/var"]),
        (["/tmp/work/**"], [], ["/tmp/work"]),
        (["fs:/data/caf%E9/**"], [], ["/data/caf\udce9"]),
    ],
)
def test_the_least_folders(read: list[str], write: list[str], folders: list[str]) -> None:
    found = places.wanted(policy(read, write), BASE)
    assert list(found.folders) == sorted(folders)
    assert found.left_out == ()


@pytest.mark.parametrize(
    "rule",
    [
        "/**",
        "/usr/**",
        "/etc/**",
        "/etc/passwd",
        "/home/**",
        "/tmp/**",
        "/tmp/x.txt",
        "/home/agent/**",
        "/run/authority/**",
        "/lib/**",
        "/usr/lib/**",
        "/*/x/**",
        "/var/one.txt",
        "/opt/tool.cfg",
    ],
)
def test_what_is_never_mounted_is_said_and_its_neighbour_is(rule: str) -> None:
    found = places.wanted(policy([rule, "/data/x/**"]), BASE)
    assert found.folders == ("/data/x",)
    assert len(found.left_out) == 1


def test_of_a_chain_the_first_opinion_is_enough() -> None:
    narrow = policy(
        ["./docs/**"], [], "", "version = 1\n[filesystem]\nread = ['/**', '/data/**']\n"
    )
    assert places.wanted(narrow, BASE).folders == (BASE,)
    inherited = load(
        'version = 1\nextends = "x"',
        format="toml",
        base=BASE,
        name="p",
        read_parent=lambda base, name: Source(
            "version = 1\n[filesystem]\nread = ['/data/**']\n", "toml", base, name
        ),
    )
    assert places.wanted(inherited, BASE).folders == ("/data",)


def test_everything_that_may_be_read_lies_in_a_folder_or_is_left_out() -> None:
    """The cover holds for paths that the policy allows, whatever the rule's form."""
    from authority.kernel.resources import parse

    rules = ["./a/*/b.txt", "/data/*.csv", "/data/x/**", "/srv/app/log", "**/notes.md"]
    made = policy(rules, ["./out/**"])
    folders = places.wanted(made, BASE).folders
    for path in (
        *(f"{BASE}/a/q/b.txt", "/data/one.csv", "/data/x/y/z", "/srv/app/log"),
        *(f"{BASE}/deep/er/notes.md", f"{BASE}/out/x"),
    ):
        effect = "fs.write" if "/out/" in path else "fs.read"
        assert made.judge(effect, parse(effect, path, cwd=BASE)).allowed
        assert any(inside(path, folder) for folder in folders), path


NEITHER = ("an old kernel", "a new one")


def reached(
    made: Policy,
    *,
    served: bool = True,
    problem: tuple[str, str] = ("", ""),
    calls: tuple[str, str] = ("", ""),
) -> Any:
    host = dataclasses.replace(probe(), fuse_problem=problem, calls_problem=calls)
    return places.reach(made, BASE, host, "", served=served)


def test_mounts_are_the_default_where_somebody_answers() -> None:
    made = policy(["./docs/**"], ["./out/**"], "[process]\nexec_from = ['./.venv']\n")
    found = reached(made)
    assert found.way == "mount"
    assert set(found.mounts) == {Mount(BASE), Mount(f"{BASE}/.venv", True)}
    assert reached(made, served=False).way == "requests"
    assert reached(policy([])).mounts == ()


def test_a_machine_without_mounts_is_refused_in_words_that_help() -> None:
    problem = ("no device", "give it one")
    with pytest.raises(IsolationRefused) as caught:
        reached(policy(["./docs/**"]), problem=problem, calls=NEITHER)
    assert "no device" in caught.value.reason
    assert "an old kernel" in caught.value.reason
    assert "give it one; or a new one" in caught.value.fix
    assert '"requests"' in caught.value.fix
    assert '"bind"' in caught.value.fix
    assert reached(policy([]), problem=problem).way == "requests", "nothing needs a mount"
    asked = policy(["./docs/**"], [], 'files = "requests"\n')
    assert reached(asked, problem=problem).way == "requests"


def test_binds_only_when_asked_for_by_name(tmp_path: Path) -> None:
    folder = os.path.realpath(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    made = policy(
        [f"{folder}/in/**", f"{folder}/gone/**"], [f"{folder}/out/**"], 'files = "bind"\n'
    )
    found = reached(made, problem=("no device", ""))
    assert found.way == "bind"
    assert {(bind.path, bind.writable) for bind in found.binds} == {
        (f"{folder}/in", False),
        (f"{folder}/out", True),
    }
    assert any("gone" in note for note in found.notes)


def test_call_by_call_where_there_is_no_mount() -> None:
    made, problem = policy(["./docs/**"]), ("no device", "give it one")
    assert reached(made, problem=problem).way == "calls"
    assert reached(made, problem=problem).mounts == (Mount(BASE),)
    assert reached(made, calls=NEITHER).way == "mount"
    asked = policy(["./docs/**"], [], 'files = "calls"\n')
    assert reached(asked).way == "calls"
    with pytest.raises(IsolationRefused, match="an old kernel"):
        reached(asked, calls=NEITHER)
    with pytest.raises(IsolationRefused, match="no device"):
        reached(policy(["./docs/**"], [], 'files = "mount"\n'), problem=problem)


@pytest.mark.parametrize(
    ("kernel", "yama", "root", "traces", "works"),
    [
        ("6.1.0-18-amd64", "", True, True, True),
        ("5.19.0", "1", False, False, True),
        ("5.19", "2", False, False, True),
        ("5.18.9", "0", True, True, False),
        ("4.20.1", "", False, False, False),
        ("6.1.0", "3", False, False, False),
        ("6.1.0", "0", True, False, False),
    ],
)
def test_what_call_by_call_needs(
    kernel: str, yama: str, root: bool, traces: bool, works: bool
) -> None:
    cause, fix = notify.problem(kernel, yama, root=root, may_trace=traces)
    assert (not cause) is works
    assert bool(fix) is not works


def test_a_named_home_is_private_and_kept(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    state = StateDir(tmp_path)
    assert state.home("") == ""
    first = state.home("work")
    assert first == f"{os.path.realpath(tmp_path)}/home/work"
    assert Path(first).stat().st_mode & 0o777 == 0o700
    (Path(first) / "kept").write_text("x")
    assert state.home("work") == first
    made = policy(["./docs/**"], [], "[process]\nhome = 'work'\n")
    mounts = places.reach(made, BASE, probe(), first, served=True).mounts
    assert Mount("/home/agent", source=first) in mounts
    Path(first).chmod(0o755)
    with pytest.raises(StateDirError):
        state.home("work")


@pytest.mark.parametrize("own", ["", *places.WAYS])
@pytest.mark.parametrize("asked", places.WAYS)
def test_whoever_starts_a_run_may_ask_for_what_is_narrower(
    tmp_path: Path, own: str, asked: str
) -> None:
    says = policy([f"{tmp_path}/**"], extra=f'files = "{own}"\n' if own else "")
    host = dataclasses.replace(probe(), fuse_problem=("", ""), calls_problem=("", ""))
    wider = own and places.WAYS.index(asked) > places.WAYS.index(own)
    if wider:
        with pytest.raises(IsolationRefused, match="narrower"):
            places.reach(says, str(tmp_path), host, "", served=True, asked=asked)
    else:
        found = places.reach(says, str(tmp_path), host, "", served=True, asked=asked)
        assert found.way == asked
