"""How an attacking program says what it tried: one JSON object a line, and a count at the end.

The lines are written without the module for it, which takes an emulated machine half a second.
"""

from __future__ import annotations

import errno

from calls import NothingGot  # type: ignore[import-not-found]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_made = 0


def attempt(name: str, action: Callable[[], object]) -> bool:
    """Try `action`; it worked unless it raises. What it returns is the detail."""
    try:
        got = action()
    except OSError as error:
        return said(name, False, errno.errorcode.get(error.errno or 0, type(error).__name__))
    except (NothingGot, ValueError, RuntimeError, MemoryError, AttributeError) as error:
        return said(name, False, str(error) or type(error).__name__)
    return said(name, True, "" if got is None else str(got))


def said(name: str, worked: bool, detail: str = "") -> bool:
    """Print one attempt."""
    global _made  # noqa: PLW0603
    _made += 1
    note(name=name, worked=worked, detail=detail)
    return worked


def done() -> None:
    """Print the count: without it the program did not reach its end."""
    note(done=_made)


def note(**values: object) -> None:
    """Print one line; by itself something that is no attempt."""
    print(_json(values), flush=True)


def _json(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_json(k)}: {_json(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_json, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(map(_character, value)) + '"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    raise TypeError(type(value).__name__)


def _character(one: str) -> str:
    if " " <= one <= "~" and one not in '"\\':
        return one
    units = one.encode("utf-16-be", "surrogatepass").hex()
    return "".join("\\u" + units[at : at + 4] for at in range(0, len(units), 4))
