"""The records of an overlay: what is gone, what hides the base's, and what the base was."""

from __future__ import annotations

import os
import stat

import msgspec


class Before(msgspec.Struct, frozen=True):
    """What the base held at a path when it was first changed: its kind, identity, size, time, mode."""

    kind: int
    dev: int
    ino: int
    size: int
    mtime_ns: int
    mode: int


class Table(msgspec.Struct):
    """The records of one overlay; paths as hexadecimal text, since names are bytes."""

    base: str
    gone: set[str] = set()
    opaque: set[str] = set()
    along: set[str] = set()
    before: dict[str, Before] = {}


def before_of(status: os.stat_result) -> Before:
    """The state of something in the base."""
    return Before(
        stat.S_IFMT(status.st_mode),
        status.st_dev,
        status.st_ino,
        status.st_size if stat.S_ISREG(status.st_mode) else 0,
        0 if stat.S_ISDIR(status.st_mode) else status.st_mtime_ns,
        status.st_mode & 0o7777,
    )
