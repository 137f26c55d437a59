"""Which of the system's files an image holds: those of the packages that listed programs need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from authority.vm import installed
from authority.vm.packages import Paths, needed, parse

STATUS = """\
Package: base
Essential: yes
Status: install ok installed
Depends: libbase (>= 2:1.0), gone

Package: libbase
Status: install ok installed
Architecture: amd64

Package: compiler
Status: install ok installed
Pre-Depends: libbase
Depends: linker:any (= 3) | other-linker, virtual-headers
Recommends: headers | other-headers
Suggests: manual
Description: a compiler
 Depends: nothing, for this line belongs to the description

Package: linker
Status: install ok installed
Recommends: linker-extras

Package: headers
Status: install ok installed
Provides: virtual-headers (= 1)

Package: linker-extras
Status: install ok installed

Package: manual
Status: install ok installed

Package: other-linker
Status: deinstall ok config-files
"""


def test_what_a_program_needs() -> None:
    packages = parse(STATUS)
    assert "other-linker" not in packages
    assert packages["compiler"].depends == (
        ("libbase",),
        ("linker", "other-linker"),
        ("virtual-headers",),
    )
    base = {"base", "libbase"}
    assert needed(packages, ["compiler"]) == base | {"compiler", "linker", "headers"}
    assert needed(packages, [], ["compiler"]) == base | {"compiler", "linker", "headers"}
    # What a program's own package recommends counts, and of what it stands on it does not.
    assert needed(packages, ["linker"]) == base | {"linker", "linker-extras"}
    assert needed(packages, [], ["linker"]) == base | {"linker"}
    assert needed(packages, ["unknown"]) == base


def test_a_path_of_both_stays_and_a_path_of_nobody_too() -> None:
    paths = Paths({"/lib": "/usr/lib"})
    paths.add("one", b"/.\n/usr\n/usr/lib\n/usr/lib/both\n/lib/one.so\n")
    paths.add("two", b"/.\n/usr\n/usr/lib\n/usr/lib/both\n/usr/lib/two\n/usr/lib/two/data\n")
    assert paths.owners("/usr/lib/one.so") == ("one",)
    assert paths.owners("/usr/lib/both") == ("one", "two")
    assert paths.below("/usr/lib/two") == {"two"}
    left = paths.without({"one"})
    assert "/usr/lib/two" in left
    assert "/usr/lib/both" not in left
    assert "/usr/lib/one.so" not in left
    assert "/usr/lib/nobody" not in left
    assert left.lie_below("/usr/lib")
    assert not left.lie_below("/usr/lib/both")


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small system: two packages, what a third made by hand, and the record."""
    lib = tmp_path / "lib"
    files = {
        "one": ["alone/a", "shared/one", "tool"],
        "two": ["shared/two", "theirs/b"],
        "": ["shared/made", "nobodys/c"],
    }
    (tmp_path / "dpkg/info").mkdir(parents=True)
    status = "".join(f"Package: {n}\nStatus: install ok installed\n\n" for n in ("one", "two"))
    (tmp_path / "dpkg/status").write_text(status)
    for package, names in files.items():
        listed = {str(lib)}
        for name in names:
            (lib / name).parent.mkdir(parents=True, exist_ok=True)
            (lib / name).write_text(name)
            listed |= {str(lib / name), str((lib / name).parent)}
        if package:
            (tmp_path / f"dpkg/info/{package}:amd64.list").write_text("\n".join(sorted(listed)))
    (lib / "link").symlink_to("tool")
    monkeypatch.setattr(installed, "RECORD", tmp_path / "dpkg")
    return lib


def test_a_selection(system: Path) -> None:
    found = installed.select([str(system)], [str(system / "tool")], [])
    assert found is not None
    assert [os.path.relpath(path, system) for path in found.trees] == ["alone", "nobodys"]
    assert [os.path.relpath(path, system) for path in found.files] == [
        "shared/made",
        "shared/one",
        "tool",
    ]
    assert found.links == ((str(system / "link"), "tool"),)
    everything = installed.select([str(system)], [str(system)], [])
    assert everything is not None
    assert everything.trees == (str(system),)


def test_a_folder_that_is_closed_is_left_out(system: Path) -> None:
    (system / "shared").chmod(0)
    try:
        found = installed.select([str(system)], [str(system / "tool")], [])
    finally:
        (system / "shared").chmod(0o755)
    assert found is not None
    assert [os.path.relpath(path, system) for path in found.files] == ["tool"]


def test_a_selection_is_kept_until_something_changes(system: Path) -> None:
    def select() -> installed.Selection | None:
        return installed.select([str(system)], [str(system / "tool")], [])

    first = select()
    assert select() is first
    (system / "shared" / "new").write_text("")
    second = select()
    assert second is not None
    assert str(system / "shared" / "new") in second.files
    (installed.RECORD / "info/two:amd64.list").write_text(f"{system}\n")
    (installed.RECORD / "status").write_text((installed.RECORD / "status").read_text() + "\n")
    third = select()
    assert third is not None
    assert third.trees == (str(system),)


def test_without_a_record_there_is_none(system: Path) -> None:
    (installed.RECORD / "status").unlink()
    assert not installed.known()
    assert installed.select([str(system)], [], []) is None
