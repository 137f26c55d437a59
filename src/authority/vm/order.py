"""The one order that a guest gets: what `init.c` reads, written.

The random bytes come from the host's kernel for each order anew. The launcher's code is this gate's
own, and its configuration says what a start in name spaces says, for a user of the machine.
"""

from __future__ import annotations

import marshal
import os
import secrets
import struct
import time
from typing import Final

from authority import protocol
from authority.isolation import layout, spawn
from authority.isolation.launcher import FIRST_FD
from authority.isolation.places import HOME
from authority.vm.preparation import Prepared
from authority.vm.root import RUN_ID

SEED_BYTES: Final = 64
_HEAD: Final = struct.Struct(">QHH")
_SIZE: Final = struct.Struct(">I")


def impossible() -> protocol.Configure:
    """An order that the guest takes in full and can't carry out: its command is a folder."""
    head = _HEAD.pack(time.time_ns(), 0, 0) + secrets.token_bytes(SEED_BYTES)
    return protocol.Configure(head + _SIZE.pack(2) + b"/\0" + _SIZE.pack(0))


def order(prepared: Prepared) -> protocol.Configure:
    """A new order for one start."""
    plan = prepared.plan
    fd, size = spawn.launcher_code()
    code = os.pread(fd, size, 0)
    words = b"".join(os.fsencode(word) + b"\0" for word in (*plan.command, spawn.bootstrap(size)))
    terminal = plan.spec.terminal or (0, 0)
    owned = [HOME, *([layout.TERMINAL] if plan.spec.terminal else [])]
    configuration = marshal.dumps(
        {
            **plan.configuration,
            "cgroups": [],
            "first_unused_fd": FIRST_FD + 1 + bool(plan.spec.terminal),
            "host_ids": (RUN_ID, RUN_ID),
            "owners": [(path.encode(), RUN_ID, RUN_ID) for path in owned],
        }
    )
    return protocol.Configure(
        b"".join(
            [
                _HEAD.pack(time.time_ns(), *terminal),
                secrets.token_bytes(SEED_BYTES),
                _SIZE.pack(len(words)),
                words,
                _SIZE.pack(len(code)),
                code,
                configuration,
            ]
        )
    )
