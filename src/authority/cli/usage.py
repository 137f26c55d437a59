"""The command line that was not understood: exit code 2, one line that says what, one where to look.

Rules
- Whatever is wrong with the words of a command is a `Usage`: an option that is not there, a value that
  is none, two that don't go together. What is wrong with what they name (no such run, no such file) is
  an `AuthorityError` like any other.
- What was typed is shown escaped: a script may have put a file's name there.
"""

from __future__ import annotations

import argparse
import re

from authority.errors import AuthorityError
from authority.kernel.printing import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


class Usage(AuthorityError):
    """Words that the command does not understand."""

    wrong_usage = True

    def __init__(self, message: str, hint: str = "", *, command: str = "") -> None:
        super().__init__(
            message, hint or (f"'{command} --help' shows its words" if command else "")
        )


_PLAIN = (
    (re.compile(r"\Athe following arguments are required: (.*)\Z", re.DOTALL), r"\1 is missing"),
    (re.compile(r"\Aone of the arguments (.*) is required\Z", re.DOTALL), r"one of \1 is missing"),
    (re.compile(r"\Aunrecognized arguments: (.*)\Z", re.DOTALL), r"\1 is not understood"),
    (re.compile(r"\Aargument ([^:]*): expected one argument\Z"), r"\1 needs a value"),
    (re.compile(r"\Aargument ([^:]*): expected at least one argument\Z"), r"\1 needs a value"),
    (
        re.compile(r"\Aargument ([^:]*): invalid choice: (.*) \(choose from (.*)\)\Z", re.DOTALL),
        r"\2 is none of \3",
    ),
    (re.compile(r"\Aargument ([^:]*): (.*)\Z", re.DOTALL), r"\1: \2"),
)
"""What argparse says, in our words; anything else stays as it is."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are `Usage`. Long options are written out, so that no later one changes
    what a script means."""

    def __init__(self, *rest: object, **options: object) -> None:
        options.setdefault("allow_abbrev", False)
        super().__init__(*rest, **options)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        """Raises `Usage`."""
        for pattern, instead in _PLAIN:
            if pattern.match(message):
                message = pattern.sub(instead, message)
                break
        raise Usage(printable(message, 400), command=self.prog)


def whole(text: str) -> int:
    """A whole number, not negative, for `type=`."""
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(
            f"a number is meant, as 17, and not {printable(text, 60)!r}"
        )
    return int(text)


def some(text: str) -> int:
    """At least one, for `type=`."""
    if (found := whole(text)) == 0:
        raise argparse.ArgumentTypeError("at least 1 is meant")
    return found
