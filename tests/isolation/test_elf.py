"""Program files that somebody changes while the gate reads what libraries they want."""

from __future__ import annotations

import itertools
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from authority.isolation import elf

READER = """\
import itertools, sys, time
from authority.isolation import elf
seen = {"whole": 0, "short": 0}
end = time.monotonic() + 60
for tried in itertools.count(1):
    try:
        seen["whole"] += elf._read.__wrapped__(sys.argv[1]) is not None
    except elf.ElfError:
        seen["short"] += 1
    if tried >= 10_000 and min(seen.values()) or time.monotonic() > end:
        break
print(all(seen.values()))
"""


def test_a_file_that_is_cut_short_meanwhile_kills_nobody(tmp_path: Path) -> None:
    whole = Path("/bin/sh").read_bytes()
    path = tmp_path / "program"
    path.write_bytes(whole)
    fd = os.open(path, os.O_RDWR)
    with subprocess.Popen(
        [sys.executable, "-c", READER, str(path)], stdout=subprocess.PIPE, text=True
    ) as reader:
        for turn in itertools.count():
            os.ftruncate(fd, 64)
            os.pwrite(fd, whole, 0)
            if turn % 64 == 0:  # for a moment it stays whole, however slowly the reader runs
                time.sleep(0.002)
                if reader.poll() is not None:
                    break
        assert reader.stdout is not None
        said = reader.stdout.read()
    os.close(fd)
    assert (reader.returncode, said) == (0, "True\n")


def test_another_file_at_its_place_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(Path("/bin/sh").read_bytes())
    first = elf.read(str(path))
    assert first is not None
    assert first.needed
    assert elf.read(str(path)) is first
    other = tmp_path / "other"
    other.write_text("no program")
    os.rename(other, path)
    assert elf.read(str(path)) is None


def test_a_table_without_end_takes_no_memory(tmp_path: Path) -> None:
    """A sparse file that says that all of it is the table of its libraries."""
    path = tmp_path / "program"
    size = 1 << 40
    header = b"\x7fELF\2\1" + bytes(12) + struct.pack("<H", 62) + bytes(12)
    header += struct.pack("<Q", 64) + bytes(14) + struct.pack("<HH", 56, 1) + bytes(6)
    path.write_bytes(header + struct.pack("<IIQQQQ", 2, 0, 0, 0, 0, size) + bytes(16))
    os.truncate(path, size)
    with pytest.raises(elf.ElfError, match="too long"):
        elf.read(str(path))
