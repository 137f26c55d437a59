"""Attacks on the list of programs: everything that could run a file which the policy does not list.

`bash` and `python` stand for a program that was taken over; the unlisted program is a copy of `echo`,
written by the run itself wherever it may write, or one of the system's that is not listed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

Answer = dict[str, Any]

ATTEMPT = r"""
import ctypes, errno, mmap, os, shutil, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
LOADER = next(p for p in ('/lib64/ld-linux-x86-64.so.2', '/lib/ld-linux-aarch64.so.1')
              if os.path.exists(p))

def told(function):
    try:
        done = function()
    except OSError as error:
        return errno.errorcode[error.errno]
    return done

def ran(*argv, **options):
    done = subprocess.run(argv, capture_output=True, text=True, **options)
    return 'RAN' if 'pwned' in done.stdout else f'failed {done.returncode}'

def start(*argv, **options):
    return told(lambda: ran(*argv, **options))
"""


@pytest.fixture
def place(caller: Any) -> Iterator[Path]:
    folder = Path(caller.folder) / "project"
    (folder / "build").mkdir(parents=True)
    shutil.copy("/bin/echo", folder / "echo")
    (folder / "echo").chmod(0o755)
    if caller.drop is not None:
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, caller.drop, caller.drop)
    yield folder
    shutil.rmtree(folder)


def attack(caller: Any, place: Path, source: str, **case: Any) -> list[str]:
    case = {
        "cwd": str(place),
        "mounts": [[str(place)]],
        "exec_allowed": ["cat", "sh", "env"],
        **case,
    }
    argv = [caller.python, "-I", "-c", ATTEMPT + source]
    (answer,) = caller.mounted({"argv": argv, **case})
    assert answer.get("code") == 0, answer
    return list(answer["out"].split("\n"))[:-1]


def test_listed_programs_run_and_unlisted_ones_do_not(caller: Any, place: Path) -> None:
    lines = attack(
        caller,
        place,
        "print(start('cat', '/dev/stdin', input='pwned'))\n"
        "print(start('sh', '-c', 'echo pwned'))\n"
        "print(start('env', 'cat', '/dev/stdin', input='pwned'))\n"
        "print(start('/usr/bin/id'), start('/usr/bin/echo', 'pwned'))\n"
        "print(os.path.exists('/usr/bin/id'))\n",
    )
    assert lines == ["RAN", "RAN", "RAN", "ENOENT ENOENT", "False"]


@pytest.mark.parametrize("folder", ["/tmp", "/home/agent", "/dev/shm", "{place}"])
def test_a_program_that_the_run_wrote(caller: Any, place: Path, folder: str) -> None:
    """Plainly, through the loader, through a descriptor, mapped: in each place it may write."""
    folder = folder.format(place=place)
    source = f"""
path = {folder!r} + '/written'
shutil.copy('echo', path); os.chmod(path, 0o755)
print(start(path, 'pwned'))
print(start(LOADER, path, 'pwned'))
fd = os.open(path, os.O_RDONLY)
print(start(f'/proc/self/fd/{{fd}}', 'pwned', pass_fds=(fd,)))
print(start(f'/dev/fd/{{fd}}', 'pwned', pass_fds=(fd,)))
print(start('sh', '-c', f'{{path}} pwned'))
print(start('env', path, 'pwned'))
with open(path, 'r+b') as f:
    print(told(lambda: mmap.mmap(f.fileno(), 4096, mmap.MAP_PRIVATE,
                                 mmap.PROT_READ | mmap.PROT_EXEC) and 'MAPPED'))
    plain = mmap.mmap(f.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(plain))
    print('PROTECTED' if libc.mprotect(ctypes.c_void_p(address), 4096, 5) == 0
          else errno.errorcode[ctypes.get_errno()])
"""
    lines = attack(caller, place, source)
    assert lines[0] == "EACCES"
    assert lines[1].startswith("failed"), lines
    assert lines[2] == lines[3] == "EACCES"
    assert lines[4] == "failed 126"
    assert lines[5] == "failed 126"
    assert lines[6] in ("EPERM", "EACCES")
    assert lines[7] in ("EPERM", "EACCES")


def test_the_control_runs_where_execution_was_asked_for(caller: Any, place: Path) -> None:
    """The same attempts, in a folder that `exec_from` names: all of them run, and it is said."""
    source = """
path = os.path.abspath('build/written')
shutil.copy('echo', path); os.chmod(path, 0o755)
fd = os.open(path, os.O_RDONLY)
print(start(path, 'pwned'), start(LOADER, path, 'pwned'), start('env', path, 'pwned'),
      start(f'/proc/self/fd/{fd}', 'pwned', pass_fds=(fd,)))
print(start('./echo', 'pwned'))
"""
    lines = attack(caller, place, source, mounts=[[str(place)], [str(place / "build"), True]])
    assert lines == ["RAN RAN RAN RAN", "EACCES"]


@pytest.mark.parametrize("flags", [0, 1, 2, 0x10])
def test_a_memory_file(caller: Any, place: Path, flags: int) -> None:
    """memfd_create without MFD_NOEXEC_SEAL is refused; with it nothing can make it executable."""
    source = f"""
def made(flags):
    fd = libc.memfd_create(b'x', flags)
    if fd < 0: raise OSError(ctypes.get_errno(), '')
    os.write(fd, open('echo', 'rb').read())
    return fd
print(told(lambda: made({flags}) and 'MADE'))
try: fd = made(8)
except OSError as error: print('no such memory file'); sys.exit()
print(told(lambda: os.fchmod(fd, 0o755) or 'CHANGED'))
print(start(f'/proc/self/fd/{{fd}}', 'pwned', pass_fds=(fd,)))
print(start(LOADER, f'/proc/self/fd/{{fd}}', 'pwned', pass_fds=(fd,)))
"""
    lines = attack(caller, place, source)
    assert lines[0] == "EPERM"
    if lines[1:] != ["no such memory file"]:  # a kernel before 6.3
        assert lines[1] == "EPERM"
        assert lines[2] == "EACCES"


def test_a_script_with_an_unlisted_interpreter(caller: Any, place: Path) -> None:
    source = """
def script(first):
    with open('build/script', 'w') as f: f.write(first + '\\necho pwned\\n')
    os.chmod('build/script', 0o755)
    return start('./build/script')
print(script('#!/usr/bin/mawk -f'), script('#!/usr/bin/env mawk'),
      script('#!' + os.path.abspath('echo')))
print(script('#!/bin/sh'))
"""
    mounts = [[str(place)], [str(place / "build"), True]]
    unlisted = attack(caller, place, source, mounts=mounts)
    assert unlisted[0] in ("ENOENT failed 127 EACCES", "EACCES failed 126 EACCES"), unlisted
    assert unlisted[1] == "RAN", "the control: its interpreter is listed"


def test_a_file_can_not_be_brought_into_a_folder_with_execution(caller: Any, place: Path) -> None:
    """By hard link or rename from where there is none: mounts of their own have no way across. A
    copy is a write, which the rules for that folder judge."""
    source = """
print(told(lambda: os.link('echo', 'build/linked') or 'LINKED'))
print(told(lambda: os.rename('echo', 'build/renamed') or 'RENAMED'))
print(told(lambda: os.symlink(os.path.abspath('echo'), 'build/pointing') or 'made'))
print(start('build/pointing', 'pwned'))
print(told(lambda: os.link('/usr/bin/cat', '/tmp/cat') or 'LINKED'))
"""
    lines = attack(caller, place, source, mounts=[[str(place)], [str(place / "build"), True]])
    assert lines[0] == lines[1] == "EXDEV", lines
    assert lines[2:4] == ["made", "EACCES"]
    assert lines[4] in ("EXDEV", "EACCES", "EPERM")


def test_the_list_does_not_hold_for_what_is_shown_and_the_loader(caller: Any, place: Path) -> None:
    """The known gap, and its edge: the loader runs what lies in a readable, executable place, which
    is the system's libraries; programs of the system that are not listed do not lie there."""
    source = """
print(start(LOADER, '/usr/bin/id'), os.path.exists('/usr/bin/id'))
print(os.path.exists(LOADER))
"""
    assert attack(caller, place, source) == ["failed 127 False", "True"]


def test_without_a_list_nothing_is_started(caller: Any, place: Path) -> None:
    lines = attack(caller, place, "print(start('/bin/sh', '-c', 'echo pwned'))\n", exec_allowed=[])
    assert lines == ["ENOSYS"]
