"""System calls for the first process of a run, without `ctypes`: that would cost more to import
than all of the rest.

Numbers go to the kernel as C longs and structures as bytes, through libc's `syscall`. The numbers
themselves come with the run's configuration (`syscalls` is the table). Built-in modules and
`_ctypes` alone: this is loaded where there is no package.
"""

import _ctypes
import posix

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_POLLIN, _POLLFD_BYTES = 1, 8
_EINTR = 4


class _Long(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "l"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Long


class _Byte(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "B"


_syscall = _Function(_ctypes.dlsym(_ctypes.dlopen(None, 2), "syscall"))  # type: ignore[arg-type]
numbers: "dict[str, int]" = {}


class LaunchError(Exception):
    """The run can't be confined as planned, so it is not started."""


def call(name: str, *arguments: "Any") -> int:
    """A system call by name: integers as longs, bytes and buffers as pointers, None as NULL."""
    result: int = _syscall(
        _Long(numbers[name]),
        *[_Long(one) if isinstance(one, int) else one for one in arguments],
    )
    if result == -1:
        number = _ctypes.get_errno()
        raise OSError(number, f"{name}: {posix.strerror(number)}")
    return result


def buffer(size: int) -> "Any":
    """Zeroed memory that the kernel may write to; `bytes(buffer)` is its content."""
    kind = type("Buffer", (_ctypes.Array,), {"_type_": _Byte, "_length_": size})
    return kind()


def address(data: bytes) -> int:
    """Where the bytes of a bytes object lie: behind its header, before its final NUL."""
    return id(data) + bytes.__basicsize__ - 1


def poll(*fds: int) -> "list[int]":
    """Blocks until one of `fds` can be read or was hung up on; which ones."""
    entries = buffer(_POLLFD_BYTES * len(fds))
    view = memoryview(entries).cast("B")
    for place, fd in enumerate(fds):
        start = place * _POLLFD_BYTES
        view[start : start + 6] = fd.to_bytes(4, "little", signed=True) + _POLLIN.to_bytes(
            2, "little"
        )
    while True:
        try:
            call("ppoll", entries, len(fds), None, None, 0)
            break
        except OSError as error:
            if error.errno != _EINTR:
                raise
    return [fd for place, fd in enumerate(fds) if any(view[place * 8 + 6 : place * 8 + 8])]
