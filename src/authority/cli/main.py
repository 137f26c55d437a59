"""The command line: one module a command, imported when it is asked for.

Rules
- Exit codes: the agent's own for `run`; 0 done; 1 a check came out negative (`audit verify`, `matrix`);
  2 wrong usage; 125 Authority refused or failed, with one line that says what to do.
- Errors go to standard error in two lines at most: what is wrong, what to do. With `--json` they are
  one object on standard output.
- Nothing from outside reaches the terminal unescaped.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import sys

from authority.errors import AuthorityError
from authority.kernel.printing import harmless, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

COMMANDS: dict[str, str] = {
    "run": "run a program under a policy",
    "init": "make a state directory and a starter policy",
    "why": "why an entry was denied, and what would allow it",
    "suggest": "the smallest additions that would have let a run pass",
    "check": "judge a request by a policy, without running anything",
    "policy": "prove statements about a policy, compare two, find rules that do nothing",
    "replay": "play a recorded run again, with nothing performed",
    "rejudge": "what recorded runs would have looked like under another policy",
    "dry": "show, apply or discard what a dry run kept",
    "audit": "verify, show, query, prove and export the log",
    "token": "mint, attenuate, inspect and revoke capabilities",
    "key": "rotate the key that mints capabilities",
    "approvals": "list what waits for a person, and answer it",
    "halt": "stop every run at once, or one",
    "incident": "what went wrong, and the steps that lead out of it",
    "canary": "plant traps that open an incident when something touches them",
    "drill": "play one whole incident, from a planted canary to its end",
    "resume": "admit requests again after a halt",
    "attach": "let a program that is started elsewhere use the gate",
    "mcp": "stand between an MCP client and a server: the server contained, each call judged",
    "gate": "the gate process: status, start, stop, clock",
    "matrix": "the specification's thirteen attacks, live",
    "image": "build and list what virtual machines boot",
    "doctor": "what this machine can protect, and what is missing",
    "completion": "completion for bash, zsh or fish",
}
WRONG = 2
REFUSED = 125
_WAYS = {
    errno.EACCES: "call as the user whose it is, or name another place (--state: the state directory)",
    errno.ENOSPC: "make room on that disk",
}
END_AT_ONCE = frozenset({"run"})
"""Commands of which nothing goes on when they return: taking the interpreter apart would be a good
part of what they take."""


def usage() -> str:
    """The list of commands."""
    width = max(map(len, COMMANDS))
    lines = ["usage: authority COMMAND [...]", ""]
    lines += [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    lines += ["", "authority COMMAND --help tells more about one."]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The `authority` program."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    rest = arguments[: arguments.index("--")] if "--" in arguments else arguments
    as_json = "--json" in rest[1:]
    try:
        try:
            return _command(arguments)
        finally:  # also when a parser has shown its help and leaves
            sys.stdout.flush()
    except AuthorityError as error:
        if getattr(error, "wrong_usage", False):
            return failed(error.message, error.hint, as_json=False, code=WRONG)
        return failed(error.message, error.hint, as_json)
    except KeyboardInterrupt:
        if sys.stderr.isatty():  # behind a progress line, or the ^C that the terminal wrote
            sys.stderr.write("\r\x1b[K\nauthority: interrupted\n")
        return 130
    except BrokenPipeError:  # whoever read standard output (`| head`) has gone
        _drop_unsaid()
        return 1
    except OSError as error:
        where = f" ({printable(os.fsdecode(error.filename), 400)})" if error.filename else ""
        heard = not _drop_unsaid()
        hint = _WAYS.get(error.errno or 0, "")
        return failed(f"{error.strerror or error}{where}", hint, as_json and heard)


def _command(arguments: list[str]) -> int:
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from authority import __version__

        print(f"authority {__version__}")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        print(f"authority: no command {name!a}; {_meant(name)}'authority help' lists them",
              file=sys.stderr)  # fmt: skip
        return 2
    code: int = importlib.import_module(f"authority.cli.{name}").main(arguments[1:])
    return code


def _meant(name: str) -> str:
    from difflib import get_close_matches

    if name.startswith("-"):
        return "options stand behind the command, as in 'authority doctor --json'; "
    near = get_close_matches(name, COMMANDS, 1)
    return f"did you mean '{near[0]}'? " if near else ""


def _drop_unsaid() -> bool:
    """What standard output does not take (nobody reads, a full disk) is not tried again at the end.
    Whether something was dropped."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return True
    return False


def _stand() -> None:
    """A standard stream that was closed leads nowhere, so that no file opened later takes its place."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def program() -> NoReturn:
    """The process: `main`, and its end."""
    _stand()
    code = main()
    if sys.argv[1:2] and sys.argv[1] in END_AT_ONCE:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError):  # whoever read has gone, or was told so already
            code = code or 1
        os._exit(code)
    sys.exit(code)


def failed(message: str, hint: str, as_json: bool, code: int = REFUSED) -> int:
    """Say what is wrong and what to do; the exit code for it."""
    if as_json:
        try:
            print(json.dumps({"error": message, "hint": hint}), flush=True)
            return REFUSED
        except OSError:  # it takes nothing, which is then what is wrong
            _drop_unsaid()
    print(f"authority: {harmless(message)}", file=sys.stderr)
    if hint:
        print(f"  {harmless(hint)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    program()
