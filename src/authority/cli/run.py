"""`authority run`: a program under a policy, from its first instruction to the closing table.

Rules
- With a person at all three standard streams the program gets a terminal of its own (`terminal`), and
  what we have to say waits until it has ended. Otherwise it gets three pipes.
- What the program prints goes to where it meant it: standard output to ours, errors to ours. The live
  line and the table go to standard error, and the live line only to a terminal.
- With `--json` the program's whole output goes to standard error and standard output gets one object.
- The exit code is the program's own, or 125 when Authority refused or failed.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from authority.cli import terminal
from authority.cli.usage import Parser, Usage
from authority.errors import AuthorityError
from authority.gate import starting, statedir
from authority.gate.client import Client, GateError, client, token_of
from authority.kernel.printing import harmless, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from authority.gate.statedir import StateDir

REFUSED = 125
_INPUT_CHUNK = 16 * 1024
_UNSAID = 20


def options_of(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options before `--` (or the first word that is none), and the program after it."""
    made = Parser(
        prog="authority run",
        usage="authority run --policy FILE [options] -- PROGRAM [argument ...]",
        description="Run a program in a sandbox whose only way out is the gate.",
    )
    add_options(made)
    made.add_argument(
        "--isolation", choices=("auto", "namespace", "vm"), default="auto",
        help="what contains the program: name spaces, or a virtual machine of its own (auto: a "
        "machine where one is ready and accelerated, else name spaces)",
    )  # fmt: skip
    made.add_argument(
        "--emulate", action="store_true",
        help="with --isolation vm: without hardware acceleration (slow)",
    )  # fmt: skip
    made.add_argument(
        "--suggest", action="store_true",
        help="at the end, the smallest additions that would have let the denied acts pass; "
        "without --policy nothing is allowed",
    )  # fmt: skip
    made.add_argument("--exact", action="store_true", help=argparse.SUPPRESS)
    made.add_argument(
        "--write", type=Path, metavar="FILE", help="with --suggest: a new policy file"
    )
    made.add_argument(
        "--dry-run", action="store_true",
        help="keep what is written aside, show it at the end, and ask whether to apply it",
    )  # fmt: skip
    made.add_argument(
        "--files", choices=("mount", "calls", "requests", "bind"), default="",
        help="how the program reaches its files; nothing wider than what the policy says",
    )  # fmt: skip
    made.add_argument("--quiet", action="store_true", help="no live line and no closing table")
    made.add_argument(
        "--tty", action=argparse.BooleanOptionalAction, default=None,
        help="a terminal for the program (default: when a person is at this one)",
    )  # fmt: skip
    options, program = parsed(made, arguments, "program")
    if options.emulate and options.isolation != "vm":
        made.error("--emulate belongs to --isolation vm")
    if not options.suggest and (options.write or options.exact):
        made.error("--write and --exact belong to --suggest")
    if options.tty and options.json:
        made.error("--tty shows what the program draws, and --json prints one object: choose one")
    return options, program


def parsed(
    made: argparse.ArgumentParser, arguments: Sequence[str], what: str
) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the command behind `--` or behind the last option; `what` it is of."""
    rest = list(arguments)
    command: list[str] = []
    if "--" in rest:
        at = rest.index("--")
        rest, command = rest[:at], rest[at + 1 :]
    options, more = made.parse_known_args(rest)
    if more and (more[0].startswith("-") or command):
        made.error(f"unknown option {more[0]!a}")
    command = [*more, *command]
    if not command:
        made.error(f"name the {what} to run, after --")
    return options, command


def add_options(made: argparse.ArgumentParser) -> None:
    """What `run` and `attach` share."""
    made.add_argument("--policy", type=Path, metavar="FILE", help="the policy (TOML or JSON)")
    made.add_argument("--state", type=Path, metavar="DIR", help="the state directory")
    made.add_argument("--json", action="store_true", help="one JSON object at the end")
    made.add_argument(
        "--accept-policy", action="store_true", help="a policy wider than the last one is accepted"
    )
    made.add_argument(
        "--grant", action="append", default=[], metavar="RESOURCE",
        help="the run may do this alone, within the policy (tool:NAME, ./out/**, "
        '"GET https://host/**"); may be repeated',
    )  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    options, program = options_of(arguments)
    body = request(options, program)
    directory = statedir.open_existing((options.state or statedir.default_root()).absolute())
    body["isolation"], body["emulate"] = options.isolation, options.emulate
    if options.suggest:
        body["suggest"] = True
    if options.dry_run:
        body["dry_run"] = True
    if options.files:
        body["files"] = options.files
    wanted = not options.json and terminal.is_ours() if options.tty is None else options.tty
    if wanted:
        body["terminal"] = terminal.window()
    follower = Follower(directory, quiet=options.quiet, as_json=options.json, has_terminal=wanted)
    follower.suggests = options if options.suggest else None
    code = follower.follow("/v1/runs", body, accept=options.accept_policy)
    if options.dry_run and follower.started:
        from authority.cli import dry

        dry.closing(directory, str(follower.started["run"]), as_json=options.json)
    return code


def request(options: argparse.Namespace, program: list[str]) -> dict[str, Any]:
    """The body of a call that starts a run; the gate asks for more. Raises `PolicyFileError`."""
    if options.policy is None and not getattr(options, "suggest", False):
        raise Usage(
            "no policy was named", "name one with --policy; 'authority init' writes a starter"
        )
    body = starting.begin(options.policy, program, os.getcwd())
    if granted := getattr(options, "grant", None):
        body["grant"] = [_absolute(text, body["cwd"]) for text in granted]
    return body


def _absolute(grant: str, cwd: str) -> str:
    """A grant as the gate reads it: a path stands for the file."""
    if grant.startswith(("/", "./", "../")) or grant == ".":
        return f"fs:{os.path.normpath(os.path.join(cwd, grant))}"
    return grant


class Follower:
    """Starts a run at the gate and shows what comes of it."""

    def __init__(
        self, directory: StateDir, *, quiet: bool, as_json: bool, has_terminal: bool = False
    ) -> None:
        self._directory = directory
        self._quiet = quiet
        self._json = as_json
        self._line = False
        self._live = sys.stderr.isatty() and not (quiet or as_json or has_terminal)
        self._terminal = terminal.PersonsTerminal(self._resize) if has_terminal else None
        self._drawing = False
        self._unsaid: list[str] = []
        self._run = ""
        self._stopping = False
        self.started: dict[str, Any] = {}
        self.suggests: argparse.Namespace | None = None
        self._unseen: list[Any] = []

    def follow(self, path: str, body: dict[str, Any], *, accept: bool) -> int:
        """Start and stay until the end; the exit code."""
        connection = client(self._directory)
        while True:
            try:
                return self._stream(connection, path, body)
            except GateError as error:
                if wanted := error.answer.get("wanted"):
                    starting.supply(body, wanted)
                    continue
                wider = error.answer.get("wider")
                known = str(body.get("accept", "")).split()
                if wider is None or error.answer["accept"] in known:
                    raise
                if not accept and not self._accepted(wider):
                    raise
                body["accept"] = " ".join([*known, error.answer["accept"]])

    def _accepted(self, wider: list[str]) -> bool:
        print("authority: this policy allows more than the last one from the same path:",
              file=sys.stderr)  # fmt: skip
        for line in wider:
            print(f"  + {harmless(line)}", file=sys.stderr)
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            return False
        from authority.cli.common import confirmed

        return confirmed("accept it?")

    def _stream(self, connection: Client, path: str, body: dict[str, Any]) -> int:
        before = signal.signal(signal.SIGINT, self._interrupted)
        try:
            for event in connection.stream("POST", path, body):
                code = self._event(event)
                if code is not None:
                    return code
        finally:
            self._give_back()
            signal.signal(signal.SIGINT, before)
        raise GateError("the gate ended the answer without the run's end")

    def _interrupted(self, number: int, frame: object) -> None:
        """The first Ctrl-C stops the run, whose end is then shown; a second one leaves at once."""
        if not self._run or self._stopping:
            raise KeyboardInterrupt
        self._stopping = True
        # Not here: the signal may have come in the middle of a write to the same stream.
        threading.Thread(target=self._stop_run, daemon=True).start()

    def _stop_run(self) -> None:
        self._say("stopping the run")
        self._call(f"/v1/runs/{self._run}/stop", {})

    def _event(self, event: dict[str, Any]) -> int | None:
        kind = event["event"]
        if kind == "refused":
            raise GateError(str(event.get("error")), str(event.get("hint", "")), event)
        if kind == "started" and "child" not in event:
            self._run, self.started = event["run"], event
            self.on_started(event)
        elif kind == "output":
            if self._terminal is not None:
                self._terminal.show(event["text"])
                return None
            self._clear()
            out = sys.stderr if self._json or event["fd"] == 2 else sys.stdout
            out.write(event["text"])
            out.flush()
        elif kind == "preparing" and "child" not in event:
            self._preparing(event)
        elif kind == "withheld":
            self._say(f"output withheld ({event['code']}, entry {event['seq']})")
        elif kind == "trouble":
            self._say(str(event["text"]))
        elif kind == "unseen" and "child" not in event:
            self._unseen = event["names"]
        elif kind == "progress" and "child" not in event:
            self._progress(event)
        elif kind == "end" and "child" not in event:
            self._clear()
            self._give_back()
            if event.get("detail"):
                self._say(printable(str(event["detail"]), 400))
            self._closing(event)
            return int(event["code"])
        return None

    def _preparing(self, event: dict[str, Any]) -> None:
        """A first start in a machine waits for what later ones find."""
        if self._json and not self._quiet:
            print(json.dumps(event, sort_keys=True), file=sys.stderr, flush=True)
        elif not self._quiet:
            from authority.cli import preparing

            self._say(preparing.text(str(event["what"])))

    def on_started(self, event: dict[str, Any]) -> None:
        """The run exists: say what was not found, and begin to pass standard input on."""
        if warning := dict(event["protection"].get("machine", {})).get("warning"):
            self._say(f"warning: {warning}")
        for missing in event["missing"]:
            self._say(f"not found for the sandbox: {missing}")
        if self._terminal is not None:
            if not self._quiet:
                self._say("the program has this terminal; Ctrl-\\ three times stops the run")
            self._drawing = True
            self._terminal.take()
        threading.Thread(target=self._pass_input, daemon=True).start()

    def _pass_input(self) -> None:
        try:
            if os.isatty(0) and os.tcgetpgrp(0) != os.getpgrp():
                return
            stop = terminal.StopKey()
            while data := os.read(0, _INPUT_CHUNK):
                if self._terminal is not None and stop.pressed(data, time.monotonic()):
                    self._stopping = True
                    self._stop_run()
                    return
                self._call(f"/v1/runs/{self._run}/input", {"data": base64.b64encode(data).decode()})
            self._call(f"/v1/runs/{self._run}/input", {"eof": True})
        except (OSError, AuthorityError):
            return  # the run is over, or there is no standard input: nothing is lost

    def _call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return Client(self._directory, token_of(self._directory.admin_token)).call(
            "POST", path, body
        )

    def _resize(self, size: dict[str, int]) -> None:
        try:
            self._call(f"/v1/runs/{self._run}/resize", size)
        except (OSError, AuthorityError):
            return  # the run is over

    def _give_back(self) -> None:
        """The person's terminal is theirs again, and what waited is said."""
        if self._terminal is not None and self._drawing:
            self._drawing = False
            self._terminal.give_back()
        unsaid, self._unsaid = self._unsaid, []
        for text in unsaid:
            self._say(text)

    def _say(self, text: str) -> None:
        if self._drawing:
            if len(self._unsaid) < _UNSAID:
                self._unsaid.append(text)
            return
        self._clear()
        print(f"authority: {harmless(text)}", file=sys.stderr)

    def _clear(self) -> None:
        if self._line:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._line = False

    def _progress(self, event: dict[str, Any]) -> None:
        if not self._live:
            return
        from authority.cli.common import amount

        parts = [f"{event['requests']} requests", f"{event['denials']} denied"]
        for dimension, limit in sorted(event["limit"].items()):
            used = event["spent"].get(dimension, 0)
            if used and dimension != "denials":
                parts.append(f"{dimension} {amount(dimension, used)}/{amount(dimension, limit)}")
        sys.stderr.write("\r\x1b[K\x1b[2m" + " | ".join(parts)[:118] + "\x1b[0m")
        sys.stderr.flush()
        self._line = True

    def _closing(self, end: dict[str, Any]) -> None:
        found, text = self._suggestion(end["run"])
        if self._json:
            end |= found
            print(json.dumps({k: v for k, v in end.items() if k != "event"}, sort_keys=True))
        elif not self._quiet:
            from authority.cli.closing import show

            show(end)
        if text and not self._json:
            print("\n" + text, file=sys.stderr)

    def _suggestion(self, run: str) -> tuple[dict[str, Any], str]:
        """What `--suggest` has to say, as JSON and as text. The run itself is over, and counts."""
        if self.suggests is None:
            return {}, ""
        from authority.cli import suggest, suggest_tools

        try:
            found, written = suggest.made_for(self._directory, run, self.suggests, self._unseen)
            tools = suggest_tools.proposed(self._directory, run)
            silent = suggest.silent(self._directory, run)
        except AuthorityError as error:
            return {"suggestion": {"error": error.message}}, f"authority: {error.message}"
        plain = suggest.plain(run, found, written, tools, silent)
        return {"suggestion": plain}, "\n".join(suggest.lines(run, found, written, tools, silent))
