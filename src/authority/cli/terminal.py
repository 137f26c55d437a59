"""The person's terminal while a run has one of its own: every key goes there, and comes back safe.

Rules
- Raw mode: what is typed, Ctrl-C and Ctrl-Z included, goes to the run's terminal as bytes, and acts
  there. Three times Ctrl-\\ in a row, within two seconds, stops the run; no program can take that away.
- The old mode comes back on every way out: the run's end, an error, a signal that ends this process.
  So do the modes that the program left switched, also when the gate dies in the middle of a picture;
  and what was still waiting to be read is thrown away, so that nothing which the program called forth
  is typed to the shell behind it. (After kill -9 of this process nobody can: `reset` helps.) Neither a
  second signal nor a reader of our output that is gone, or reads no more, gets in the way of the mode.
- While the program has the screen we write nothing of our own; what there is to say is said after.
- A terminal that we don't have (in the background, or another program's) is left alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
import threading
import tty

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

STOP_KEY = 0x1C
STOP_TIMES = 3
STOP_SECONDS = 2.0
_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class StopKey:
    """Sees in what is typed whether the person wants the run to stop."""

    def __init__(self) -> None:
        self._times: list[float] = []

    def pressed(self, data: bytes, now: float) -> bool:
        """Whether the last of these bytes, typed now, completes the three."""
        for byte in data:
            if byte != STOP_KEY:
                self._times = []
                continue
            self._times = [t for t in self._times if now - t <= STOP_SECONDS] + [now]
            if len(self._times) >= STOP_TIMES:
                return True
        return False


def is_ours() -> bool:
    """Whether a person sits at all three standard streams, and we are in the foreground."""
    return all(map(os.isatty, (0, 1, 2))) and os.tcgetpgrp(0) == os.getpgrp()


def window() -> dict[str, int]:
    """Rows and columns of the window, or the usual ones where there is none."""
    for fd in (1, 0, 2):
        try:
            size = os.get_terminal_size(fd)
        except OSError:
            continue
        if size.lines > 0 and size.columns > 0:
            return {"rows": min(size.lines, 4096), "columns": min(size.columns, 4096)}
    return {"rows": 24, "columns": 80}


class PersonsTerminal:
    """`take` it while the run has it, `give_back` afterwards; both may be called again."""

    def __init__(self, on_resize: Callable[[dict[str, int]], None]) -> None:
        # Here alone: a run without a terminal does not load it.
        from authority.gate.screen import Screen

        self._on_resize = on_resize
        self._screen = Screen()
        self._before: list[Any] | None = None
        self._handlers: dict[int, Any] = {}
        self._resized = threading.Event()
        self._over = self._undoing = False
        self._column = 0

    def take(self) -> None:
        """Raw mode, where standard input is a terminal; and watch its size."""
        if os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp():
            self._before = termios.tcgetattr(0)
            for number in _ENDING:
                self._handlers[number] = signal.signal(number, self._ended)
            self._handlers[signal.SIGCONT] = signal.signal(signal.SIGCONT, self._continued)
            tty.setraw(0, termios.TCSADRAIN)
        self._handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, self._told)
        threading.Thread(target=self._watch, daemon=True).start()

    def show(self, text: str) -> None:
        """What the program wrote: read once more here, so that the gate's word is not needed."""
        if shown := self._screen.feed(text.encode("utf-8", "replace")):
            self._column = 0 if shown.endswith("\n") else 1
            _write(shown)

    def give_back(self) -> None:
        """The terminal as it was."""
        self._over = True
        if self._before is not None:
            self._handlers.setdefault(signal.SIGINT, signal.signal(signal.SIGINT, self._ended))
        self._resized.set()
        try:
            undone = self._screen.flush()
            if undone or self._column:
                self._undoing = True
                with contextlib.suppress(OSError):  # whoever does not read sees no picture
                    _write(undone + ("\r\n" if self._column else ""))
                self._column = 0
        finally:
            self._undoing = False
            if self._before is not None:
                termios.tcsetattr(0, termios.TCSAFLUSH, self._before)
                self._before = None
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            self._handlers = {}

    def _ended(self, number: int, _frame: object) -> None:
        """Ends us. While the terminal is given back it ends no more than a write that nobody takes."""
        if self._over and not self._undoing:
            return
        self._undoing = False
        raise SystemExit(128 + number)

    def _continued(self, _number: int, _frame: object) -> None:
        """A shell that stopped and continued us has set its own mode in between."""
        if self._before is not None:
            tty.setraw(0, termios.TCSADRAIN)
        self._resized.set()

    def _told(self, _number: int, _frame: object) -> None:
        self._resized.set()

    def _watch(self) -> None:
        while self._resized.wait() and not self._over:
            self._resized.clear()
            self._on_resize(window())


def _write(text: str) -> None:
    data = text.encode()
    sys.stdout.flush()
    while data:
        data = data[os.write(1, data) :]
