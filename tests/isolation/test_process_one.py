"""Process 1 of a run holds the channel: the program tries to look into it from its first moment on.

The program is a shell, which is there a millisecond after it was executed, and tries again and again.
It may start others, so its own execve waits for nobody. The launcher is also made slow between its
fork and what follows, as a busy computer makes it, and is tried with the guard taken out.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from authority.isolation import spawn

from .trunk import running

SHELL = os.path.realpath("/bin/sh")
LOOK = """\
exec 2>/dev/null
i=0
while [ $i -lt 5000 ]; do
    for door in mem maps environ; do
        if true < /proc/1/$door; then echo "saw $door"; exit; fi
    done
    i=$((i + 1))
done
true < /proc/self/maps && echo "saw nothing of it"
"""
FORKED = "        become_program(configuration, streams, ready_write)\n"
GUARD = 'call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)\n'
Changes = dict[str, str]


@pytest.fixture
def launcher(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The launcher as it is, but for these changes of its source."""
    changes: Changes = request.param
    real = spawn._compile

    def changed(path: Path) -> CodeType:
        if path.name != "program.py":
            return real(path)
        text = path.read_text("utf-8")
        for old, new in changes.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        return compile(text, "<program>", "exec", dont_inherit=True, optimize=2)

    monkeypatch.setattr(spawn, "_compile", changed)
    spawn.launcher_code.cache_clear()
    yield
    spawn.launcher_code.cache_clear()


SLOW = {FORKED: FORKED + "    __import__('time').sleep(1)\n"}
OPEN = {GUARD: "pass\n"}


def _looked() -> str:
    async def scene() -> str:
        spec: dict[str, Any] = {"argv": (SHELL, "-c", LOOK), "exec_allowed": (SHELL,)}
        async with running("", **spec) as (_, trunk):
            await trunk.rest()
            assert trunk.exit == (0, 0), (trunk.exit, trunk.output, trunk.troubles, trunk.order)
            return trunk.output[1].decode()

    return asyncio.run(scene())


@pytest.mark.parametrize("launcher", [{}, SLOW], indirect=True, ids=["as it is", "slow"])
def test_no_moment_is_early_enough_to_look_into_it(launcher: None) -> None:
    assert _looked() == "saw nothing of it\n"


@pytest.mark.parametrize("launcher", [OPEN], indirect=True, ids=["open"])
def test_without_the_guard_it_is_seen(launcher: None) -> None:
    assert _looked() == "saw mem\n"
