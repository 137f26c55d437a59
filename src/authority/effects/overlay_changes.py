"""What an overlay holds against its base: a list of changes, and how a person reads them.

Rules
- A change is a path with what the base had when it was first changed and what is there now. A file
  whose content and mode are as they were is none.
- Everything that is printed passes `printable`: names and lines of files come from the run.
- Two texts are shown as a unified diff, up to `TEXT_MOST` bytes each; everything else by its size.
"""

from __future__ import annotations

import difflib
import os
import stat
from pathlib import Path

import msgspec

from authority.effects.overlay_table import Before, Table
from authority.errors import AuthorityError
from authority.kernel.canonical import printable

TEXT_MOST = 512 * 1024
_LINE = 2000


class DryRunDamaged(AuthorityError):
    """The private folder of a dry run is not whole."""


class Change(msgspec.Struct, frozen=True):
    """`kind`: file, link or directory. `now`: its mode and size, None when it was removed."""

    path: bytes
    kind: str
    before: Before | None
    now: tuple[int, int] | None


_KINDS = {stat.S_IFREG: "file", stat.S_IFLNK: "link", stat.S_IFDIR: "directory"}


def read_table(store: Path) -> Table:
    """The records of a closed overlay. Raises `DryRunDamaged`."""
    try:
        return msgspec.json.decode((store / "table.json").read_bytes(), type=Table)
    except (OSError, msgspec.MsgspecError) as error:
        raise DryRunDamaged(
            f"the dry run's table can't be read: {printable(str(error), 200)}",
            "it did not end in order; 'authority dry discard' removes what it left",
        ) from None


def changes(store: Path, table: Table) -> list[Change]:
    """All changes: directories before what is in them, removed ones after; but what lay in a folder
    that is something else now is removed first."""
    found: list[Change] = []
    first: list[Change] = []
    there, replaced = set(), set()
    upper = os.fsencode(store / "upper")
    for folder, folders, files in os.walk(upper):
        folders.sort()
        for name in sorted((*folders, *files)):
            full = os.path.join(folder, name)
            path = os.path.relpath(full, upper)
            there.add(path.hex())
            status = os.lstat(full)
            kind = _KINDS.get(stat.S_IFMT(status.st_mode), "")
            if path.hex() in table.along or not kind:
                continue
            before = table.before.get(path.hex())
            if before is not None and _same(full, _below(table, path), before, status):
                continue
            found.append(Change(path, kind, before, (status.st_mode & 0o7777, status.st_size)))
            if before is not None and before.kind == stat.S_IFDIR and kind != "directory":
                replaced.add(path + b"/")

    for key in sorted(table.gone - there, reverse=True):
        before = table.before.get(key)
        if before is not None:
            path = bytes.fromhex(key)
            into = first if any(path.startswith(each) for each in replaced) else found
            into.append(Change(path, _KINDS.get(before.kind, ""), before, None))
    return first + found


def _below(table: Table, path: bytes) -> bytes:
    return os.path.join(os.fsencode(table.base), path)


def _same(new: bytes, old: bytes, before: Before, status: os.stat_result) -> bool:
    kind = stat.S_IFMT(status.st_mode)
    if before.kind != kind or (kind != stat.S_IFLNK and before.mode != status.st_mode & 0o7777):
        return False
    if kind == stat.S_IFLNK:
        return _content(new, link=True) == _content(old, link=True)
    if kind == stat.S_IFREG:
        return before.size == status.st_size and _content(new) == _content(old)
    return True


def _content(path: bytes, *, link: bool = False) -> bytes | None:
    try:
        if link:
            return os.readlink(path)
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            return file.read()
    except OSError:
        return None


def diff(store: Path, table: Table, found: list[Change]) -> str:
    """The changes as a person reads them."""
    parts = []
    for change in found:
        name = printable(change.path, 400)
        old = _content(_below(table, change.path), link=change.kind == "link")
        new = _content(
            os.path.join(os.fsencode(store / "upper"), change.path), link=change.kind == "link"
        )
        if change.now is None:
            parts.append(f"removed {change.kind} {name}")
        elif change.kind == "directory":
            parts.append(f"new directory {name}")
            continue
        elif change.kind == "link":
            parts.append(f"{_word(change)} link {name} -> {printable(new or b'', 400)}")
            continue
        else:
            parts.append(f"{_word(change)} file {name}{_mode(change)}")
        if change.kind == "file":
            parts.append(_file_diff(name, old if change.before else b"", new or b""))
    return "\n".join(part for part in parts if part) + ("\n" if parts else "")


def _word(change: Change) -> str:
    return "changed" if change.before is not None else "new"


def _mode(change: Change) -> str:
    if change.now is None or change.before is None or change.before.mode == change.now[0]:
        return ""
    return f" (mode {change.before.mode:o} -> {change.now[0]:o})"


def _file_diff(name: str, old: bytes | None, new: bytes) -> str:
    if old is None:
        return "  (the file outside can't be read now)"
    before, after = _lines(old), _lines(new)
    if before is None or after is None:
        return f"  (binary or long: {len(old)} -> {len(new)} bytes)"
    lines = difflib.unified_diff(before, after, f"a/{name}", f"b/{name}", lineterm="")
    return "\n".join(lines)


def _lines(data: bytes) -> list[str] | None:
    if len(data) > TEXT_MOST or b"\0" in data:
        return None
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return [printable(line, _LINE) for line in text.splitlines()]
