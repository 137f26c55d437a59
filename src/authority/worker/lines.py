"""Two-way byte lines: a socket, or TLS over another line, with the same four verbs.

Rules
- `read` gives at most as many bytes as it is asked for, nothing at the end. A peer that takes no more
  raises `ConnectionError` from `write`. One task may read while another writes.
- What was read too far is put back with `unread` and comes first the next time.
- TLS is done on memory: the bytes that were looked at before still count, and nothing is read past
  what a caller wants. A TLS peer that ends without saying so leaves `ragged`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

CHUNK = 64 * 1024


class Line:
    """The base: holds what was put back."""

    def __init__(self) -> None:
        self._back = b""
        self.ragged = False

    async def read(self, size: int = CHUNK) -> bytes:
        """What came next."""
        if self._back:
            data, self._back = self._back[:size], self._back[size:]
            return data
        return await self._read(size)

    def unread(self, data: bytes) -> None:
        """Put back what was not wanted."""
        self._back = data + self._back

    async def _read(self, size: int) -> bytes:
        raise NotImplementedError

    async def write(self, data: bytes) -> None:
        """Send all of it, waiting for room."""
        raise NotImplementedError

    async def finish(self) -> None:
        """Nothing more is sent; reading goes on."""
        raise NotImplementedError

    def close(self) -> None:
        """End it, both ways."""
        raise NotImplementedError


class SocketLine(Line):
    """A non-blocking socket, which it owns."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__()
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()

    @classmethod
    def adopt(cls, fd: int) -> SocketLine:
        """The line of a descriptor that was handed over."""
        return cls(socket.socket(fileno=fd))

    async def _read(self, size: int) -> bytes:
        return await self._loop.sock_recv(self._sock, size)

    async def write(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._sock, data)

    async def finish(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        # Whoever waits on the descriptor is woken by the shutdown before the number is free again.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        fd = self._sock.fileno()
        if fd >= 0:
            self._loop.remove_reader(fd)
            self._loop.remove_writer(fd)
        self._sock.close()


class TlsLine(Line):
    """TLS over another line, which it owns."""

    def __init__(
        self, inner: Line, context: ssl.SSLContext, *, server: bool, host: str | None = None
    ) -> None:
        super().__init__()
        self._inner = inner
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=server, server_hostname=host)
        self._sending = asyncio.Lock()

    @property
    def protocol(self) -> str | None:
        """What ALPN agreed on."""
        return self._tls.selected_alpn_protocol()

    async def handshake(self) -> None:
        """Raises `ssl.SSLError`, `OSError`."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._more()
            except ssl.SSLError:
                await self._flush()  # the alert that says why
                raise
            else:
                await self._flush()
                return

    async def _flush(self) -> None:
        async with self._sending:
            if data := self._out.read():
                await self._inner.write(data)

    async def _more(self) -> None:
        if data := await self._inner.read():
            self._in.write(data)
        else:
            self._in.write_eof()

    async def _read(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size > 0:
            try:
                part = self._tls.read(size)
            except ssl.SSLWantReadError:
                if parts:
                    break
                await self._flush()
                await self._more()
                continue
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError) as end:
                self.ragged = isinstance(end, ssl.SSLEOFError)
                break
            except ssl.SSLError as error:
                raise ConnectionResetError("the TLS session broke") from error
            if not part:
                break
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    async def write(self, data: bytes) -> None:
        try:
            self._tls.write(data)
        except ssl.SSLError as error:
            raise ConnectionResetError("the TLS session broke") from error
        await self._flush()

    async def finish(self) -> None:
        with contextlib.suppress(ssl.SSLError, OSError):
            with contextlib.suppress(ssl.SSLWantReadError):
                self._tls.unwrap()
            await self._flush()
        await self._inner.finish()

    def close(self) -> None:
        self._inner.close()
