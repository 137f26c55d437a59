"""What a `Gate` does with files. Where a handle is given or asked for, nothing is read."""

from __future__ import annotations

from typing import Any, Literal, overload

from authority.agent.calling import Calling, Capability
from authority.agent.errors import BadReply
from authority.agent.fields import as_bytes as _bytes
from authority.agent.fields import field as _field
from authority.agent.fields import map_of
from authority.agent.handles import Handle, Made, is_handle

READ_CHUNK = 8 * 1024 * 1024
Entries = list[dict[str, Any]]
Given = bytes | str | Handle | Made
"""What may be written: bytes, text (as UTF-8), or what stands behind handles."""


def given(data: Given) -> bytes | Handle | Made:
    """What is sent for it."""
    return data if isinstance(data, Handle | Made) else _bytes(data)


class Filing(Calling):
    """The half of `Gate` about files."""

    @overload
    def read(
        self,
        path: str | bytes,
        offset: int = 0,
        length: int | None = None,
        capability: Capability = None,
        handle: Literal[False] = False,
    ) -> bytes: ...

    @overload
    def read(
        self,
        path: str | bytes,
        offset: int = 0,
        length: int | None = None,
        capability: Capability = None,
        *,
        handle: Literal[True],
    ) -> Handle: ...

    def read(
        self,
        path: str | bytes,
        offset: int = 0,
        length: int | None = None,
        capability: Capability = None,
        handle: bool = False,
    ) -> bytes | Handle:
        """The file's bytes from `offset`, all of them or `length`; or a handle to them.

        More than 8 MiB are read in several requests: a file that changes meanwhile is seen so. A
        handle is to one request's bytes, so to 8 MiB at most.
        """
        if handle:
            arguments = {"offset": offset} if offset else {}
            if length is not None:
                arguments["length"] = length
            return is_handle(self.call("fs.read", path, arguments, capability, True))["/data"]
        parts: list[bytes] = []
        while length is None or length > 0:
            arguments = {"offset": offset} if offset else {}
            if length is not None:
                arguments["length"] = min(length, READ_CHUNK)
            value = map_of("fs.read", self.call("fs.read", path, arguments, capability))
            data = _field(value, "data", bytes)
            parts.append(data)
            offset += len(data)
            if length is not None:
                length -= len(data)
            if value.get("eof", True) or not data:
                break
        return b"".join(parts)

    def read_text(
        self, path: str | bytes, encoding: str = "utf-8", capability: Capability = None
    ) -> str:
        """The file as text. Raises UnicodeDecodeError."""
        return self.read(path, capability=capability).decode(encoding)

    @overload
    def write(
        self,
        path: str | bytes,
        data: bytes | str,
        create_only: bool = False,
        capability: Capability = None,
    ) -> int: ...

    @overload
    def write(
        self,
        path: str | bytes,
        data: Handle | Made,
        create_only: bool = False,
        capability: Capability = None,
    ) -> Handle: ...

    def write(
        self,
        path: str | bytes,
        data: Given,
        create_only: bool = False,
        capability: Capability = None,
    ) -> int | Handle:
        """Replace the file as a whole, or make it; its size in bytes. Text is written as UTF-8.

        Of what stands behind handles the size is behind one, too.
        """
        arguments = {"data": given(data), "create_only": create_only}
        return _size("fs.write", self.call("fs.write", path, arguments, capability))

    @overload
    def append(
        self, path: str | bytes, data: bytes | str, capability: Capability = None
    ) -> int: ...

    @overload
    def append(
        self, path: str | bytes, data: Handle | Made, capability: Capability = None
    ) -> Handle: ...

    def append(self, path: str | bytes, data: Given, capability: Capability = None) -> int | Handle:
        """Add to the end of the file; its size in bytes, behind a handle if `data` is."""
        return _size("fs.append", self.call("fs.append", path, {"data": given(data)}, capability))

    @overload
    def list(
        self,
        path: str | bytes = ".",
        capability: Capability = None,
        handle: Literal[False] = False,
    ) -> Entries: ...

    @overload
    def list(
        self,
        path: str | bytes = ".",
        capability: Capability = None,
        *,
        handle: Literal[True],
    ) -> Handle: ...

    def list(
        self, path: str | bytes = ".", capability: Capability = None, handle: bool = False
    ) -> Entries | Handle:
        """The directory's entries: name, type, size; or a handle to them."""
        value = self.call("fs.list", path, None, capability, handle)
        if handle:
            return is_handle(value)
        return _entries(value)

    @overload
    def stat(
        self, path: str | bytes, capability: Capability = None, handle: Literal[False] = False
    ) -> dict[str, Any]: ...

    @overload
    def stat(
        self, path: str | bytes, capability: Capability = None, *, handle: Literal[True]
    ) -> Handle: ...

    def stat(
        self, path: str | bytes, capability: Capability = None, handle: bool = False
    ) -> dict[str, Any] | Handle:
        """type (file, directory), size (bytes), mtime (us), mode; or a handle to them."""
        value = self.call("fs.stat", path, None, capability, handle)
        return is_handle(value) if handle else map_of("fs.stat", value)

    def mkdir(
        self, path: str | bytes, parents: bool = False, capability: Capability = None
    ) -> None:
        """Make a directory."""
        self.call("fs.mkdir", path, {"parents": parents}, capability)

    def rename(self, path: str | bytes, to: str, capability: Capability = None) -> None:
        """Give the file another name."""
        self.call("fs.rename", path, {"to": to}, capability)

    def delete(self, path: str | bytes, capability: Capability = None) -> None:
        """Delete a file or an empty directory."""
        self.call("fs.delete", path, None, capability)


def _entries(value: Any) -> Entries:
    if not isinstance(value, list):
        raise BadReply("the gate answered fs.list with something else than a list")
    return value


def _size(effect: str, value: Any) -> int | Handle:
    return (
        value["/size"] if isinstance(value, Handle) else _field(map_of(effect, value), "size", int)
    )
