"""Changing files: write, append, make a directory, rename, delete. Runs in a thread.

Rules
- The parent directory is held while its entry is changed; its name is never looked up again.
- `write` is atomic: a temporary file with a random name in the same directory is written, synced,
  given mode and owner, renamed over the target, and the directory is synced. Readers see the old or
  the new content; a crash leaves the old file and perhaps a `.authority-*` one. A target that was
  not there when it was checked is not replaced if it appears meanwhile (`RENAME_NOREPLACE`).
- `append` writes to the inode itself with `O_APPEND` and fdatasync(2).
- A target with more than one name (hard links) is neither written, appended to nor replaced: the
  other name may lie where the run has no right. Read-only files, also for root, and for `append`
  files with a set-id bit are refused likewise.
- Modes: a replaced file keeps its permission bits, never set-id or sticky bits; a new file gets
  0644, a new directory 0755, both under the gate's umask. Access lists and extended attributes of a
  replaced file are not carried over.
- Owners: a gate that runs as root gives a new file or directory to the owner and group of the
  directory that holds it, and keeps owner and group of a file that it replaces, so nothing in a
  user's folder ends up root's. If that can't be done the change fails. A gate without root can only
  make files of its own user.
- `rename` moves regular files. A directory is refused: moving it would carry everything beneath it
  past the rules for its old and its new path. It replaces regular files only.
- `mkdir` with `parents` makes each missing directory beneath a handle of the one before. Which ones
  are missing is first known here, so each is judged by the policy as a resource of its own.
- `delete` removes a regular file's name or an empty directory.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from authority.effects import room
from authority.effects.base import Call, EffectFailed, EffectRefused
from authority.effects.beneath import Beneath, Handle, Untouchable
from authority.kernel.canonical import printable
from authority.kernel.codes import Code
from authority.kernel.resources import parse

_ATTEMPTS = 4
_FILE_MODE = 0o644
_DIRECTORY_MODE = 0o755
_SET_ID = stat.S_ISUID | stat.S_ISGID
_LOW = 2**53 - 1


@dataclass(slots=True)
class Work:
    """One call while it runs in its thread: what it has used and found so far, also if it fails."""

    call: Call
    spent: dict[str, int] = field(default_factory=lambda: {"requests": 1})
    facts: dict[str, Any] = field(default_factory=dict)


def identity(status: os.stat_result) -> dict[str, int]:
    """Device and inode for an entry. Integers there end below 2**53, inode numbers do not always:
    what lies above goes into `ino_high`."""
    facts = {"dev": status.st_dev & _LOW, "ino": status.st_ino & _LOW}
    if status.st_ino > _LOW:
        facts["ino_high"] = status.st_ino >> 53
    return facts


def moment(status: os.stat_result) -> dict[str, int]:
    """When a file was changed last (nobody can set that), and how many names it has."""
    return {
        "changed": max(0, min(status.st_ctime_ns // 1000, _LOW)),
        "links": min(status.st_nlink, _LOW),
    }


def write(beneath: Beneath, work: Work) -> dict[str, int]:
    """Replace or create a file with `data`."""
    data, create_only = work.call.arguments.data, work.call.arguments.create_only
    _within(work, len(data))
    parent, name = beneath.parent(work.call.resource.path)
    with parent:
        old = _target(beneath, parent, name)
        if old is not None and create_only:
            raise FileExistsError(errno.EEXIST, "")
        temporary = f".authority-{secrets.token_hex(8)}".encode()
        fd = beneath.create(parent, temporary, _FILE_MODE if old is None else 0o600)
        try:
            try:
                work.spent["file_bytes"] = len(data)
                _write_all(fd, data)
                new = _Temporary(parent, temporary, fd)
                old = _put_in_place(beneath, new, name, old, create_only=create_only)
                status = os.fstat(fd)
            finally:
                os.close(fd)
        except BaseException:
            _remove(parent, temporary)
            raise
        beneath.sync(parent)
    work.facts |= identity(status) | moment(status)
    work.facts |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    work.facts["created"] = old is None
    return {"size": len(data)}


def append(beneath: Beneath, work: Work) -> dict[str, int]:
    """Add `data` to the end of a file, which is created when it isn't there."""
    data = work.call.arguments.data
    _within(work, len(data))
    parent, name = beneath.parent(work.call.resource.path)
    with parent:
        fd, created = _open_to_append(beneath, parent, name)
        try:
            work.facts["created"] = created
            work.facts |= identity(os.fstat(fd))
            _write_all(fd, data, work)
            os.fdatasync(fd)
            status = os.fstat(fd)
            size = status.st_size
            work.facts |= moment(status)
        finally:
            os.close(fd)
        if created:
            beneath.sync(parent)
    work.facts |= {
        "size": min(size, _LOW),
        "appended": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    return {"size": size}


def mkdir(beneath: Beneath, work: Work) -> dict[str, int]:
    """Make a directory; with `parents` those above it too, and one that is there is no error."""
    path = work.call.resource.path
    if not work.call.arguments.parents:
        parent, name = beneath.parent(path)
        with parent, _make_directory(beneath, parent, name) as made:
            work.facts |= identity(made.status) | {"created": True}
        return {}
    names = [part for part in path.split(b"/") if part]
    current = beneath.look(b"/")
    try:
        created, count = False, 0
        for depth, name in enumerate(names, 1):
            below = beneath.look_if_there(current, name)
            created = below is None
            if below is None:
                count += 1
                if depth < len(names):
                    _judge_parent(work.call, b"/" + b"/".join(names[:depth]))
                below = _make_directory(beneath, current, name)
            current.close()
            current = below
            if not current.is_directory:
                raise NotADirectoryError(errno.ENOTDIR, "")
        work.facts |= identity(current.status) | {"created": created, "made": count}
    finally:
        current.close()
    return {}


def rename(beneath: Beneath, work: Work) -> dict[str, int]:
    """Move a regular file to the call's target."""
    if work.call.target is None:
        raise EffectRefused(Code.INTERNAL, "The rename has no target.")
    old_parent, old_name = beneath.parent(work.call.resource.path)
    with old_parent:
        new_parent, new_name = beneath.parent(work.call.target.path)
        with new_parent, beneath.look(old_name, old_parent.fd) as moved:
            if moved.is_directory:
                raise Untouchable("is a directory, and only regular files are renamed")
            for attempt in range(_ATTEMPTS):
                target = _target(beneath, new_parent, new_name)
                try:
                    replace = target is not None
                    beneath.move(old_parent, old_name, new_parent, new_name, replace=replace)
                    break
                except FileExistsError:
                    if attempt == _ATTEMPTS - 1:
                        raise
            beneath.sync(new_parent)
            if old_parent.identity != new_parent.identity:
                beneath.sync(old_parent)
            work.facts |= identity(moved.status) | {
                "size": min(moved.status.st_size, _LOW),
                "replaced": target is not None,
                "replaced_links": 1,
            }
            with beneath.look(new_name, new_parent.fd) as arrived:
                work.facts |= moment(arrived.status)
                if arrived.identity != moved.identity:
                    raise EffectFailed(
                        f"{printable(work.call.resource.text, 300)}: another program changed the"
                        " directory at the same moment; look at both names before going on.",
                        spent=work.spent,
                        facts=work.facts,
                    )
    return {}


def delete(beneath: Beneath, work: Work) -> dict[str, int]:
    """Remove a regular file's name or an empty directory."""
    parent, name = beneath.parent(work.call.resource.path)
    with parent:
        with beneath.look(name, parent.fd) as found:
            work.facts |= identity(found.status) | {"links": min(found.status.st_nlink, _LOW)}
            if found.is_directory:
                work.facts["type"] = "directory"
                os.rmdir(name, dir_fd=parent.fd)
            else:
                work.facts |= {"type": "file", "size": min(found.status.st_size, _LOW)}
                os.unlink(name, dir_fd=parent.fd)
        beneath.sync(parent)
    return {}


# --- parts ---


class _Temporary(NamedTuple):
    parent: Handle
    name: bytes
    fd: int


def _within(work: Work, size: int) -> None:
    if size > work.call.reserved.get("file_bytes", 0):
        raise EffectRefused(Code.BUDGET_EXCEEDED, "More bytes than were reserved for this call.")


def _target(beneath: Beneath, parent: Handle, name: bytes) -> os.stat_result | None:
    """The status of a file that may be replaced, None when there is none. Raises for all else."""
    found = beneath.look_if_there(parent, name)
    if found is None:
        return None
    with found:
        _check_changeable(beneath, found)
        return found.status


def _check_changeable(beneath: Beneath, found: Handle) -> None:
    if found.is_directory:
        raise IsADirectoryError(errno.EISDIR, "")
    if found.status.st_nlink > 1:
        raise Untouchable("has more than one name (hard links), so it is never changed")
    if not beneath.may_write(found):
        raise PermissionError(errno.EACCES, "")


def _put_in_place(
    beneath: Beneath,
    new: _Temporary,
    name: bytes,
    old: os.stat_result | None,
    *,
    create_only: bool,
) -> os.stat_result | None:
    """Sync the temporary file and rename it; gives the status of the file that it replaced."""
    parent, fd = new.parent, new.fd
    for attempt in range(_ATTEMPTS):
        if old is None:
            _give(fd, parent.status)
        else:
            _give(fd, old)
            os.fchmod(fd, old.st_mode & 0o777)
        os.fsync(fd)
        try:
            beneath.move(parent, new.name, parent, name, replace=old is not None)
            break
        except FileExistsError:
            if attempt == _ATTEMPTS - 1 or create_only:
                raise
            old = _target(beneath, parent, name)
    return old


def _open_to_append(beneath: Beneath, parent: Handle, name: bytes) -> tuple[int, bool]:
    for _ in range(_ATTEMPTS):
        found = beneath.look_if_there(parent, name)
        if found is not None:
            with found:
                _check_changeable(beneath, found)
                if found.status.st_mode & _SET_ID:
                    raise Untouchable("has a set-id bit, so it is never changed")
                fd = beneath.reopen(found, os.O_WRONLY | os.O_APPEND)
            if os.fstat(fd).st_nlink != 1:
                os.close(fd)
                raise Untouchable("changed while it was opened")
            return fd, False
        try:
            fd = beneath.create(parent, name, _FILE_MODE, os.O_APPEND)
        except FileExistsError:
            continue
        try:
            _give(fd, parent.status)
        except BaseException:
            os.close(fd)
            _remove(parent, name)
            raise
        return fd, True
    raise Untouchable("changed again and again while it was opened")


def _write_all(fd: int, data: bytes, work: Work | None = None) -> None:
    room.leave(fd, len(data))
    view = memoryview(data)
    while view:
        written = os.write(fd, view)
        view = view[written:]
        if work is not None:
            work.spent["file_bytes"] = len(data) - len(view)


def _make_directory(beneath: Beneath, parent: Handle, name: bytes) -> Handle:
    os.mkdir(name, _DIRECTORY_MODE, dir_fd=parent.fd)
    made = beneath.look(name, parent.fd)
    try:
        _give_directory(beneath, parent, made)
        made.status = os.fstat(made.fd)  # What is made below it takes its owner from here.
        beneath.sync(parent)
    except BaseException:
        made.close()
        raise
    return made


def _give_directory(beneath: Beneath, parent: Handle, made: Handle) -> None:
    """Somebody may have swapped what was just made: an empty directory of ours is all we give."""
    if not made.is_directory:
        raise Untouchable("changed while it was made")
    if os.geteuid() != 0 or made.status.st_uid != 0:
        return
    fd = beneath.reopen(made, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if os.listdir(fd):
            raise Untouchable("changed while it was made")
        _give(fd, parent.status)
    finally:
        os.close(fd)


def _judge_parent(call: Call, path: bytes) -> None:
    resource = parse(call.effect, path)
    if not call.policy.judge(call.effect, resource).allowed:
        raise EffectRefused(
            Code.POLICY_DENY,
            f"{printable(resource.text, 300)}: the directory above does not exist and the policy"
            " does not allow making it.",
        )


def _give(fd: int, owner: os.stat_result) -> None:
    """As root: owner and group like `owner`'s. Otherwise the file is the gate's user's already."""
    if os.geteuid() != 0:
        return
    status = os.fstat(fd)
    if (status.st_uid, status.st_gid) != (owner.st_uid, owner.st_gid):
        os.fchown(fd, owner.st_uid, owner.st_gid)


def _remove(parent: Handle, name: bytes) -> None:
    """Take a half-made file away; one that is gone or can't be removed changes no verdict."""
    try:
        os.unlink(name, dir_fd=parent.fd)
    except OSError:
        return
