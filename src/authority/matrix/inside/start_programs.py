"""Tries to start a second program in every way that the kernel has.

The program to start is a tiny ELF file made here, so that nothing of the host is needed, and, where
only a program that is there can be started, the interpreter itself. Each prints a word; the word is
the proof that it ran.
"""

# ruff: noqa: S606 - starting programs without a shell is what this file is for

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable

from attempts import attempt, done  # type: ignore[import-not-found]
from calls import MACHINE, NothingGot, syscall  # type: ignore[import-not-found]
from given import GIVEN  # type: ignore[import-not-found]

WORD = b"EXECUTED\n"
PYTHON = [os.path.realpath(sys.executable), "-I", "-S", "-c", "import os; os.write(1, b'EXECUTED')"]
AT_EMPTY_PATH = 0x1000


def elf() -> bytes:
    """The smallest program that writes `WORD` and exits, for this machine."""
    base, start = 0x400000, 64 + 56
    if MACHINE == "x86_64":
        code = bytes.fromhex("b801000000bf01000000488d3512000000ba090000000f05b83c00000031ff0f05")
        code = code[:13] + (len(code) - 17).to_bytes(4, "little") + code[17:]
        machine = 62
    elif MACHINE == "aarch64":
        # mov x0,#1; adr x1,.+28; mov x2,#9; mov x8,#64; svc; mov x0,#0; mov x8,#93; svc
        words = [0xD2800020, 0x100000E1, 0xD2800122, 0xD2800808, 0xD4000001]
        words += [0xD2800000, 0xD2800BA8, 0xD4000001]
        code = b"".join(w.to_bytes(4, "little") for w in words)
        machine = 183
    else:
        raise NothingGot("not on this machine")
    size = start + len(code) + len(WORD)
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + (2).to_bytes(2, "little")
    head += machine.to_bytes(2, "little") + (1).to_bytes(4, "little")
    head += (base + start).to_bytes(8, "little") + (64).to_bytes(8, "little") + bytes(8)
    head += bytes(4) + (64).to_bytes(2, "little") + (56).to_bytes(2, "little")
    head += (1).to_bytes(2, "little") + bytes(6)
    segment = (1).to_bytes(4, "little") + (5).to_bytes(4, "little") + bytes(8)
    segment += base.to_bytes(8, "little") * 2 + size.to_bytes(8, "little") * 2
    segment += (4096).to_bytes(8, "little")
    return head + segment + code + WORD


def ran(start: Callable[[], object]) -> str:
    """Fork; in the child make standard output a pipe and `start`; the word must come."""
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writable, 1)
        number = 0
        try:
            start()
        except OSError as error:
            number = error.errno or 0
        except BaseException as error:
            number = 255 if isinstance(error, NothingGot) else 254
        os._exit(number if number < 256 else 255)
    os.close(writable)
    with open(readable, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(pid, 0)
    if b"EXECUTED" in said:
        return "it ran"
    code = os.waitstatus_to_exitcode(status)
    if 0 < code < 254:
        raise OSError(code, os.strerror(code))
    raise NothingGot(f"ended with {code}")


def from_folder(folder: str, content: bytes) -> str:
    """A program file in `folder`, executed."""
    path = os.path.join(folder, f"second-{os.getpid()}")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755)
    try:
        try:
            os.write(fd, content)
        finally:
            os.close(fd)
        return ran(lambda: execute(path))
    finally:
        os.unlink(path)


def execute(path: str) -> None:
    os.execv(path, [path])


def memfd() -> int:
    fd = os.memfd_create("second", 0)
    os.write(fd, elf())
    return fd


def execveat(fd: int) -> None:
    syscall(322, 281, fd, b"", None, None, AT_EMPTY_PATH)


def spawned(program: list[str]) -> None:
    pid = os.posix_spawn(program[0], program, {})
    _, status = os.waitpid(pid, 0)
    if status:
        raise NothingGot("it failed")


def loader() -> str:
    found = sorted(glob.glob("/lib64/ld-linux-*.so.*") + glob.glob("/lib/ld-linux-*.so.*"))
    if not found:
        raise NothingGot("no loader is here")
    return found[0]


def main() -> None:
    python = PYTHON[0]
    attempt("execv of the interpreter", lambda: ran(lambda: os.execv(python, PYTHON)))
    attempt("posix_spawn", lambda: ran(lambda: spawned(PYTHON)))
    attempt(
        "execveat by descriptor",
        lambda: ran(lambda: os.execve(os.open(python, os.O_RDONLY), PYTHON, {})),
    )
    attempt("/proc/self/exe", lambda: ran(lambda: os.execv("/proc/self/exe", PYTHON)))
    attempt("ld.so FILE", lambda: ran(lambda: os.execv(loader(), [loader(), *PYTHON])))
    attempt("memfd, execveat", lambda: ran(lambda: execveat(memfd())))
    attempt("memfd, /proc/self/fd", lambda: ran(lambda: execute(f"/proc/self/fd/{memfd()}")))
    for folder in ("/tmp", os.path.expanduser("~"), "/dev/shm", "/var/tmp", os.getcwd()):  # noqa: S108
        attempt(f"program in {folder}", lambda f=folder: from_folder(f, elf()))
    script = f"#!{python}\nprint('EXECUTED')\n".encode()
    attempt("script in /tmp", lambda: from_folder("/tmp", script))  # noqa: S108
    for program in GIVEN.get("programs", []):
        attempt(f"execv of {program[0]}", lambda p=program: ran(lambda: os.execv(p[0], p)))
    done()


if __name__ == "__main__":
    main()
