"""What is tried in a process of its own."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable

from calls import NothingGot  # type: ignore[import-not-found]


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
