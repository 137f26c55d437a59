"""As root of a machine whose kernel holds nothing back: ways to stop, and to be stopped by nobody.

Some leave a machine that does nothing for ever, some one that computes for ever with interrupts off,
some end it. The host must end all of them in time.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import time

from calls import syscall  # type: ignore[import-not-found]
from hardware import Ports, take_ports  # type: ignore[import-not-found]

_CODE = {
    "a hung kernel": "faebfe",  # interrupts off, and on the spot for ever
    "a sleeping kernel": "faf4ebfd",  # interrupts off, and waiting for one
    "a triple fault": "0f011d02000000" + "0f0b" + "00" * 10,  # no interrupts' table, and a fault
}
_AT = 0x2000000


def other_kernel(code: str) -> None:
    """The machine's only program from now on, in ring 0."""
    data = ctypes.create_string_buffer(bytes.fromhex(code).ljust(4096, b"\xf4"))
    segment = struct.pack("<QQQQ", ctypes.addressof(data), 4096, _AT, 4096)
    syscall(246, 104, _AT, 1, segment, 62 << 16)
    syscall(169, 142, 0xFEE1DEAD, 672274793, 0x45584543, 0)


def reboot(command: int) -> None:
    syscall(169, 142, 0xFEE1DEAD, 672274793, command, 0)


def panic() -> None:
    with open("/proc/sysrq-trigger", "w", encoding="ascii") as f:
        f.write("c")


def sleep(state: int) -> None:
    """By the power registers themselves."""
    take_ports()
    Ports().write(0x604, 1 << 13 | state << 10, 2)


def port(number: int, value: int) -> None:
    take_ports()
    Ports().write(number, value)


def memory() -> None:
    """All of it, and the first program's own too."""
    kept = []
    while True:
        kept.append(bytearray(os.urandom(1 << 20)))


def processes() -> None:
    """Without end."""
    import signal

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        try:
            os.fork()
        except OSError:
            continue


def deaf() -> None:
    """A loop that no signal ends, in as many threads as it gets."""
    import signal
    import threading

    for number in range(1, 32):
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_IGN)
    for _ in range(8):
        threading.Thread(target=deaf_loop).start()


def deaf_loop() -> None:
    while True:
        continue


STAY = {
    "halt": lambda: reboot(0xCDEF0123),
    "a hung kernel": lambda: other_kernel(_CODE["a hung kernel"]),
    "a sleeping kernel": lambda: other_kernel(_CODE["a sleeping kernel"]),
    "suspended": lambda: sleep(1),
    "a loop": deaf,
    "all processes": processes,
}
END = {
    "panic": panic,
    "a triple fault": lambda: other_kernel(_CODE["a triple fault"]),
    "power off": lambda: reboot(0x4321FEDC),
    "reboot": lambda: reboot(0x01234567),
    "power off by its register": lambda: sleep(0),
    "hibernated by its register": lambda: sleep(2),
    "reset by a port": lambda: port(0xCF9, 6),
    "reset by the keyboard": lambda: port(0x64, 0xFE),
    "all memory": memory,
}

if __name__ == "__main__":
    print("begins", flush=True)
    time.sleep(1)  # until that is out
    (STAY | END)[sys.argv[1]]()
    sys.stdout.flush()
    while True:
        time.sleep(60)
