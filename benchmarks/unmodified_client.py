"""The program of the benchmark: ordinary, with nothing of Authority in it, timed by itself.

`python unmodified_client.py '{"what": [...], "port": N, ...}'` does each thing in `what` and prints one
JSON object of times in microseconds, a list for each. It uses the standard library, `git` and
`pytest`, and finds a proxy as everybody does, in HTTP_PROXY. The first rounds fill caches and are not
counted.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from urllib.parse import unquote, urlsplit

GIVEN = json.loads(sys.argv[1])
HOST, PORT, ROUNDS = "127.0.0.2", GIVEN["port"], GIVEN["rounds"]
WARM = 5


def each(action: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    took = []
    for _ in range(rounds + WARM):
        began = time.perf_counter_ns()
        action()
        took.append((time.perf_counter_ns() - began) / 1000)
    return took[WARM:]


def read_files() -> list[float]:
    """`open()`, `read()` and the end of a small file, another one each time, as Python does it."""
    names = iter(sorted(os.listdir("data")) * (1 + (ROUNDS + WARM) // 50))

    def one() -> None:
        with open(f"data/{next(names)}", "rb") as file:
            assert len(file.read()) == 100

    return each(one)


def open_files() -> list[float]:
    """The two calls alone: a file is opened for reading and closed."""
    names = iter(sorted(os.listdir("data")) * (1 + (ROUNDS + WARM) // 50))
    return each(lambda: os.close(os.open(f"data/{next(names)}", os.O_RDONLY)))


def proxy() -> tuple[str, int] | None:
    found = urlsplit(os.environ.get("HTTP_PROXY", ""))
    return (found.hostname, found.port or 80) if found.hostname else None


def login() -> dict[str, str]:
    """What the proxy wants to see, when the variable has a name and a password."""
    found = urlsplit(os.environ.get("HTTP_PROXY", ""))
    if not found.username:
        return {}
    text = f"{unquote(found.username)}:{unquote(found.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(text.encode()).decode()}"}


def ask(connection: http.client.HTTPConnection, target: str, headers: dict[str, str]) -> None:
    connection.request("GET", target, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    assert body == b"x" * 100, (answer.status, body[:300])


def judged() -> list[float]:
    """A request on a kept connection; a proxy sees it whole."""
    via, headers = proxy(), login()
    connection = http.client.HTTPConnection(*(via or (HOST, PORT)))
    target = f"http://{HOST}:{PORT}/small" if via else "/small"
    return each(lambda: ask(connection, target, headers))


def opaque() -> list[float]:
    """A request inside a kept tunnel (CONNECT), of which a proxy sees bytes."""
    port = GIVEN["tunnel"]
    via = proxy()
    connection = http.client.HTTPConnection(*(via or (HOST, port)))
    if via:
        connection.set_tunnel(HOST, port, login())
    return each(lambda: ask(connection, "/small", {}))


def fresh() -> list[float]:
    """A request on a connection of its own."""
    via, headers = proxy(), login()
    target = f"http://{HOST}:{PORT}/small" if via else "/small"

    def one() -> None:
        connection = http.client.HTTPConnection(*(via or (HOST, PORT)))
        ask(connection, target, headers)
        connection.close()

    return each(one, ROUNDS // 4)


def model() -> list[float]:
    """The first byte of a streamed answer, on a kept connection."""
    base = urlsplit(os.environ.get("OPENAI_BASE_URL") or f"http://{HOST}:{PORT}/v1")
    assert base.hostname is not None
    connection = http.client.HTTPConnection(base.hostname, base.port)
    body = json.dumps(
        {
            "model": "bench",
            "stream": True,
            "max_tokens": 20,
            "messages": [{"role": "user", "content": "hello"}],
        }
    )
    took = []
    for _ in range(ROUNDS // 4 + WARM):
        began = time.perf_counter_ns()
        connection.request("POST", f"{base.path}/chat/completions", body, HEADERS)
        answer = connection.getresponse()
        first = answer.read(1)
        took.append((time.perf_counter_ns() - began) / 1000)
        assert answer.status == 200, answer.read()
        assert first == b"d"
        answer.read()
    return took[WARM:]


HEADERS = {"Content-Type": "application/json", "Authorization": "Bearer sk-bench-0123456789"}


def clone() -> list[float]:
    """`git clone` of a small repository over HTTP, into a folder that is kept."""
    took = []
    for _ in range(2):
        shutil.rmtree("out/clone", ignore_errors=True)
        began = time.perf_counter_ns()
        command = ["git", "clone", "-q", f"http://{HOST}:{PORT}/repo.git", "out/clone"]
        subprocess.run(command, check=True, env={**os.environ, "GIT_CONFIG_NOSYSTEM": "1"})
        took.append((time.perf_counter_ns() - began) / 1000)
    assert os.path.exists("out/clone/one.txt")
    return took[1:]


def tests() -> list[float]:
    """pytest on a project of a few files, import of pytest included."""
    began = time.perf_counter_ns()
    import pytest

    try:
        tempfile.gettempdir()
    except FileNotFoundError:  # a sandbox in which only the folder it was given may be written
        tempfile.tempdir = os.path.abspath("out")
    quiet = ["-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "--rootdir=project"]
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        said, sys.stdout = sys.stdout, nowhere
        code = pytest.main([*quiet, "project"])
        sys.stdout = said
    assert code == 0, code
    return [(time.perf_counter_ns() - began) / 1000]


THINGS = {
    "open": open_files,
    "read": read_files,
    "judged": judged,
    "opaque": opaque,
    "fresh": fresh,
    "model": model,
    "clone": clone,
    "pytest": tests,
}
print(json.dumps({name: THINGS[name]() for name in GIVEN["what"]}))
