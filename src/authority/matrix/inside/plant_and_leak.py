"""Tries the ways out that an ordinary program has: files that a trusted tool later executes, links,
plain HTTP with and without the proxy that it was given, a false name inside an allowed connection,
names, sockets of the person's session, a socket that was left open.

What is planted and what arrives is looked at by the host.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import os
import socket
import ssl
import stat
from urllib.parse import unquote, urlsplit

from attempts import attempt, done  # type: ignore[import-not-found]
from calls import NothingGot  # type: ignore[import-not-found]
from given import GIVEN  # type: ignore[import-not-found]

TIMEOUT = 5.0
HERE = GIVEN["writable"]
HOOK = f"#!/bin/sh\n# {GIVEN['mark_text']}\n"


def plant(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)
    os.chmod(path, 0o755)  # noqa: S103 - a hook


def configure() -> None:
    with open(f"{HERE}/.git/config", "a", encoding="utf-8") as f:
        f.write(f"\tfsmonitor = echo {GIVEN['mark_text']}\n")


def rename_to_repository() -> None:
    """A folder that looks harmless, and gets its name last."""
    os.makedirs(f"{HERE}/second/plain/hooks")
    plant(f"{HERE}/second/plain/hooks/post-checkout", HOOK)
    os.rename(f"{HERE}/second/plain", f"{HERE}/second/.git")


def read_by_link() -> str:
    link = f"{HERE}/to-the-secret"
    os.symlink(GIVEN["secret"], link)
    with open(link, encoding="utf-8") as f:
        if GIVEN["word"] not in f.read():
            raise NothingGot("another file")
    return "read"


def write_by_link() -> None:
    link = f"{HERE}/to-outside"
    os.symlink(GIVEN["by_link"], link)
    with open(link, "w", encoding="utf-8") as f:
        f.write("written")


def proxy() -> tuple[str, int, str]:
    """Where the environment's proxy is, and what it wants to see."""
    found = urlsplit(os.environ.get("HTTP_PROXY") or os.environ.get("http_proxy") or "")
    if not found.hostname:
        raise NothingGot("no proxy was given")
    login = ""
    if found.username:
        text = f"{unquote(found.username)}:{unquote(found.password or '')}"
        login = f"Proxy-Authorization: Basic {base64.b64encode(text.encode()).decode()}\r\n"
    return found.hostname, found.port or 80, login


def unlisted_by_proxy() -> str:
    host, port, login = proxy()
    url = f"http://127.0.0.1:{GIVEN['unlisted']}/"
    with socket.create_connection((host, port), TIMEOUT) as s:
        s.sendall(f"GET {url} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n{login}\r\n".encode())
        answer = s.recv(4096)
    if b" 200 " not in answer[:16]:
        raise NothingGot(answer[:40].decode("latin-1"))
    return "answered"


def unlisted_directly() -> str:
    connection = http.client.HTTPConnection("127.0.0.1", GIVEN["unlisted"], timeout=TIMEOUT)
    connection.request("GET", "/")
    return str(connection.getresponse().status)


def to_allowed(first: bytes) -> bytes:
    """Say this to the allowed host, through the proxy where there is one; the answer."""
    try:
        host, port, login = proxy()
    except NothingGot:
        with socket.create_connection(("127.0.0.1", GIVEN["port"]), TIMEOUT) as s:
            s.sendall(first)
            return s.recv(4096)
    with socket.create_connection((host, port), TIMEOUT) as s:
        target = f"localhost:{GIVEN['port']}"
        s.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{login}\r\n".encode())
        head = b""
        while b"\r\n\r\n" not in head:
            if not (piece := s.recv(4096)):
                raise NothingGot("closed")
            head += piece
        if b" 200 " not in head[:16]:
            raise NothingGot(head[:40].decode("latin-1"))
        s.sendall(first)
        return s.recv(4096)


def allowed() -> str:
    name = f"localhost:{GIVEN['port']}"
    answer = to_allowed(f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
    if b" 200 " not in answer[:16]:
        raise NothingGot(answer[:40].decode("latin-1") or "no answer")
    return "answered"


def other_host() -> str:
    answer = to_allowed(f"GET / HTTP/1.1\r\nHost: {GIVEN['other']}\r\n\r\n".encode())
    if b" 200 " not in answer[:16]:
        raise NothingGot(answer[:40].decode("latin-1") or "no answer")
    return "answered"


def other_sni() -> str:
    """A TLS hello that names another host."""
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    made = context.wrap_bio(into, out, server_hostname=GIVEN["other"])
    with contextlib.suppress(ssl.SSLWantReadError):
        made.do_handshake()
    if not to_allowed(out.read()):
        raise NothingGot("no answer")
    return "answered"


def resolve() -> str:
    """A name that nobody listed and that everybody may look up (RFC 2606)."""
    found = socket.getaddrinfo("example.com", 443, type=socket.SOCK_STREAM)
    return str(found[0][4][0])


def session() -> str:
    """Each socket of the person's session, by the variable that names it or by its path."""
    reached = []
    named = [os.environ.get(name, "") for name in ("SSH_AUTH_SOCK", "DOCKER_HOST")]
    for path in {*GIVEN["session"], *(name.removeprefix("unix://") for name in named)}:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as s:
            s.settimeout(TIMEOUT)
            s.connect(path)
            reached.append(path)
    if not reached:
        raise NothingGot("none")
    return f"{len(reached)} reached"


def inherited() -> str:
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if int(name) > 2 and stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                found += os.write(int(name), GIVEN["word"].encode()) > 0
    if not found:
        raise NothingGot("none left open")
    return f"wrote to {found}"


def main() -> None:
    attempt("allowed: ask its host", allowed)
    attempt("write a hook", lambda: plant(f"{HERE}/.git/hooks/post-checkout", HOOK))
    attempt("write git's config", configure)
    attempt("rename a folder to a repository", rename_to_repository)
    attempt("read by a planted link", read_by_link)
    attempt("write by a planted link", write_by_link)
    attempt("plain HTTP by the proxy", unlisted_by_proxy)
    attempt("plain HTTP without the proxy", unlisted_directly)
    attempt("another Host to the allowed host", other_host)
    attempt("another SNI to the allowed host", other_sni)
    attempt("resolve an unlisted name", resolve)
    attempt("sockets of the session", session)
    attempt("an inherited socket", inherited)
    done()


if __name__ == "__main__":
    main()
