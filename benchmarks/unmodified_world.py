"""Servers for the benchmark of unmodified programs, on loopback, in a process of their own.

`GET /small` answers 100 bytes; `POST /v1/chat/completions` streams the beginning of an answer at once,
in the OpenAI form; everything below `/repo.git` goes to git's own `git-http-backend`. The server is
as bare as it can be, so that what stands between shows.

`python unmodified_world.py REPOSITORIES` prints two ports, which are alike (a policy can judge one and
tunnel to the other), and serves until its input ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

BACKEND = "/usr/lib/git-core/git-http-backend"
SMALL = b"x" * 100


def _event(delta: dict[str, str], **more: object) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    body = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "bench"}
    data = b"data: " + json.dumps({**body, "choices": [choice], **more}).encode() + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


_USAGE = {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5}
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAM = _HEAD + _event({"role": "assistant", "content": "hello"})
REST = _event({"content": " there"}, usage=_USAGE) + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


async def _git(head: dict[str, str], method: str, target: str, body: bytes) -> bytes:
    path, _, query = target.partition("?")
    environment = {
        "PATH": os.environ["PATH"],
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
        "GIT_PROJECT_ROOT": sys.argv[1],
        "GIT_HTTP_EXPORT_ALL": "1",
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "CONTENT_TYPE": head.get("content-type", ""),
        "HTTP_CONTENT_ENCODING": head.get("content-encoding", ""),
        "GIT_PROTOCOL": head.get("git-protocol", ""),
        "CONTENT_LENGTH": str(len(body)),
    }
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        BACKEND, stdin=pipe, stdout=pipe, env=environment
    )
    out, _ = await process.communicate(body)
    fields, _, answer = out.partition(b"\r\n\r\n")
    return b"HTTP/1.1 200 OK\r\n%s\r\nContent-Length: %d\r\n\r\n%s" % (fields, len(answer), answer)


async def _body(reader: asyncio.StreamReader, head: dict[str, str]) -> bytes:
    if head.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(head.get("content-length", "0")))
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readline()
    await reader.readline()
    return body


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, target, _ = lines[0].split(" ")
            pairs = (line.split(": ", 1) for line in lines[1:] if line)
            head = {name.lower(): value for name, value in pairs}
            body = await _body(reader, head)
            if "/repo.git" in target:
                writer.write(await _git(head, method, target, body))
            elif method == "POST":
                writer.write(STREAM)
                await writer.drain()
                await asyncio.sleep(0.002)  # a model's next word
                writer.write(REST)
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + SMALL)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        return  # the client went away
    finally:
        writer.close()


async def main() -> None:
    servers = [await asyncio.start_server(_serve, "127.0.0.2", 0) for _ in range(2)]
    print(*(server.sockets[0].getsockname()[1] for server in servers), flush=True)
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, sys.stdin.read)
    for server in servers:
        server.close()


if __name__ == "__main__":
    asyncio.run(main())
