"""What a policy says of programs and of how files are reached: read, refused, and only tightened."""

from __future__ import annotations

import pytest

from authority.kernel.policy import (
    Policy,
    PolicyError,
    Source,
    check_warnings,
    from_canonical,
    load,
    narrow,
)
from authority.kernel.policy_change import widened

BASE = "/home/u/project"


def make(text: str, parent: str = "") -> Policy:
    def read_parent(base: str, name: str) -> Source:
        return Source("version = 1\n" + parent, "toml", "/base", name)

    head = 'version = 1\nextends = "x"\n' if parent else "version = 1\n"
    return load(head + text, format="toml", base=BASE, name="p.toml", read_parent=read_parent)


def test_folders_with_execution_are_absolute_and_belong_to_their_file() -> None:
    made = make('[process]\nexec_from = ["./.venv", "/opt/build", "node_modules/"]\n')
    assert made.process.exec_from == (f"{BASE}/.venv", "/opt/build", f"{BASE}/node_modules")
    assert from_canonical(made.canonical).process == made.process
    assert sum("exec_from" in line for line in check_warnings(made)) == 3


@pytest.mark.parametrize("folder", ["../x", "./a/../b", "*", "./**", "a?", "", "fs:/a/%2F"])
def test_other_folders_are_refused(folder: str) -> None:
    with pytest.raises(PolicyError) as caught:
        make(f"[process]\nexec_from = [{folder!r}]\n")
    assert "exec_from[0]" in str(caught.value)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "x" * 65, "a b"])
def test_a_home_has_a_plain_name(name: str) -> None:
    with pytest.raises(PolicyError, match="home"):
        make(f"[process]\nhome = {name!r}\n")
    assert make('[process]\nhome = "coder-1"\n').process.home == "coder-1"


@pytest.mark.parametrize("way", ["mount", "calls", "requests", "bind"])
def test_the_ways_to_files(way: str) -> None:
    made = make(f'[filesystem]\nread = ["./a"]\nfiles = "{way}"\n')
    assert made.filesystem.files == way
    assert made.filesystem.read == ("./a",)
    assert any("not judged" in line for line in check_warnings(made)) is (way == "bind")


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(PolicyError, match="must be one of"):
        make('[filesystem]\nfiles = "all"\n')
    assert make("").filesystem.files == ""


def test_extending_only_tightens() -> None:
    base = '[process]\nexec_from = ["/o/a", "/o/b"]\nhome = "h"\n[filesystem]\nfiles = "bind"\n'
    kept = make("", base)
    assert kept.process.exec_from == ("/o/a", "/o/b")
    assert (kept.process.home, kept.filesystem.files) == ("h", "bind")
    less = make('[process]\nexec_from = ["/o/a", "/o/c"]\n[filesystem]\nfiles = "mount"\n', base)
    assert less.process.exec_from == ("/o/a",)
    assert less.filesystem.files == "mount"
    for text in ('[process]\nhome = "other"\n', '[filesystem]\nfiles = "bind"\n'):
        with pytest.raises(PolicyError, match="define it in the base"):
            make(text, '[filesystem]\nread = ["./x"]\n')


def test_a_child_has_what_both_have() -> None:
    parent = make('[process]\nexec_from = ["/o/a"]\nhome = "h"\n[filesystem]\nfiles = "mount"\n')
    child = make('[process]\nexec_from = ["/o/a", "/o/b"]\n[filesystem]\nfiles = "bind"\n')
    both = narrow(parent, child)
    assert both.process.exec_from == ("/o/a",)
    assert both.process.home == ""
    assert both.filesystem.files == "mount"
    assert narrow(child, parent).filesystem.files == "mount"


def test_a_policy_that_gained_execution_is_shown_as_wider() -> None:
    from authority.kernel.canonical import decode

    before, after = (
        decode(make(text).canonical)["tree"]
        for text in (
            "[process]\n",
            '[process]\nexec_from = ["./x"]\nhome = "h"\n[filesystem]\nfiles = "bind"\n',
        )
    )
    lines = widened(before, after)
    assert {line.partition(":")[0].rpartition(".")[2] for line in lines} == {
        *("exec_from", "home", "files")
    }
    assert widened(before, before) == []


def test_a_wider_policy_is_shown_in_the_words_of_its_file() -> None:
    from authority.kernel.canonical import decode

    def lines(old: str, new: str) -> list[str]:
        return widened(*(decode(make(text).canonical)["tree"] for text in (old, new)))

    budgets = '[budgets]\ncost_usd = "{}"\nwall_time = "{}"\nfile_bytes = "{}"\n'
    assert lines(budgets.format("2.50", "5m", "3MB"), budgets.format("10", "90s", "3KB")) == [
        'budgets.cost_usd: "10" (was "2.5")'
    ]
    assert lines(budgets.format("2.50", "5m", "3MB"), "") == [
        'budgets.cost_usd: not set (was "2.5")',
        'budgets.file_bytes: not set (was "3MB")',
        'budgets.wall_time: not set (was "5m")',
    ]
    assert lines("", '[network]\nhttp = ["GET https://a.example/**"]') == [
        'network.http: also "GET https://a.example/**"'
    ]
    prices = {"date": "2025-11-20", "model": {"a": {"input": 1}, "b": {"input": 2}}}
    assert widened({}, {"models": {"prices": prices}}) == [
        "models.prices: the list of 2025-11-20 (was not set)"
    ]
    assert lines('[filesystem]\ndeny = ["**/.env"]', "[filesystem]\ndeny = []") == [
        'filesystem.deny: no longer "**/.env"'
    ]
    assert lines("[network]\nhttp = []", "") == ["network: not set (was {http = []})"]


def test_what_is_no_longer_secret_is_shown() -> None:
    from authority.kernel.canonical import decode

    secret = '[labels.secrets]\nstaff = ["fs:./a/**"{}]\n'
    old, new = (
        decode(make(secret.format(more)).canonical)["tree"] for more in (', "fs:./b/**"', "")
    )
    assert widened(old, new) == ['labels.secrets.staff: no longer "fs:./b/**"']
    assert widened(new, old) == []


def test_files_that_are_only_asked_for_are_no_wider() -> None:
    from authority.kernel.canonical import decode

    mounted, asking = (
        decode(make(f'[filesystem]\nread = ["./x"]\nfiles = "{way}"\n').canonical)["tree"]
        for way in ("mount", "requests")
    )
    assert widened(mounted, asking) == []
    assert widened(asking, mounted) != []
