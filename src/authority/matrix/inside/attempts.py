"""How an attacking program says what it tried: one JSON object a line, and a count at the end."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import signal
import sys
from collections.abc import Callable
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_made = 0
GIVEN: dict[str, Any] = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
"""What the matrix tells the program: ports, paths, names."""

MACHINE = platform.machine()
_PR_SET_NAME = 15

if "mark" in GIVEN:
    # How the host finds this process and its children, whatever started them.
    _libc.prctl(_PR_SET_NAME, GIVEN["mark"].encode()[:15], 0, 0, 0)


class NothingGot(Exception):
    """The call passed, but the attacker did not get what it wanted."""


def attempt(name: str, action: Callable[[], object]) -> bool:
    """Try `action`; it worked unless it raises. What it returns is the detail."""
    try:
        got = action()
    except OSError as error:
        return said(name, False, errno.errorcode.get(error.errno or 0, type(error).__name__))
    except (NothingGot, ValueError, RuntimeError, MemoryError, AttributeError) as error:
        return said(name, False, str(error) or type(error).__name__)
    return said(name, True, "" if got is None else str(got))


def said(name: str, worked: bool, detail: str = "") -> bool:
    """Print one attempt."""
    global _made  # noqa: PLW0603
    _made += 1
    print(json.dumps({"name": name, "worked": worked, "detail": detail}), flush=True)
    return worked


def done() -> None:
    """Print the count: without it the program did not reach its end."""
    print(json.dumps({"done": _made}), flush=True)


def note(**values: Any) -> None:
    """Print something that is no attempt."""
    print(json.dumps(values), flush=True)


def syscall(x86_64: int, aarch64: int, *arguments: int | bytes | None) -> int:
    """A system call by its number on either machine. Raises OSError."""
    number = {"x86_64": x86_64, "aarch64": aarch64}.get(MACHINE, -1)
    if number < 0:
        raise NothingGot("not on this machine")
    made = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in arguments]
    made += [ctypes.c_long(0)] * (6 - len(made))
    ctypes.set_errno(0)
    result: int = _libc.syscall(ctypes.c_long(number), *made)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def in_child(action: Callable[[], object]) -> str:
    """Do it in a forked child, so that what it changes ends with it. Raises what it raised."""
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)
        try:
            got = action()
            answer = {"got": "" if got is None else str(got)}
        except OSError as error:
            answer = {"errno": str(error.errno or 0)}
        except BaseException as error:
            answer = {"error": f"{type(error).__name__} {error}"}
        os.write(writable, json.dumps(answer).encode())
        os._exit(0)
    os.close(writable)
    with open(readable, "rb") as pipe:
        raw = pipe.read()
    os.waitpid(pid, 0)
    if not raw:
        raise NothingGot("killed")
    answer = json.loads(raw)
    if "errno" in answer:
        number = int(answer["errno"])
        raise OSError(number, os.strerror(number))
    if "error" in answer:
        raise NothingGot(answer["error"])
    return str(answer["got"])
