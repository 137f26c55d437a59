"""`tool.call`: a process of its own, one JSON document in, one out.

Rules
- The command is the policy's, never the run's: `tool:NAME` picks it, arguments go to standard input
  as `{"arguments": {…}}` and a newline, and never onto a command line or into the environment.
- The answer on standard output is exactly one JSON object, `{"result": …}` or `{"error": "text"}`,
  in UTF-8, without repeated members, at most `MAX_OUTPUT` bytes and `MAX_DEPTH` deep, numbers
  finite and within 64 bits. Anything else, an exit code other than 0, the end of the time limit or
  too much output is a failure, whatever the tool printed before.
- A member beside these (`trusted`, `_meta`, a label of its own making) is such a failure, too: what an
  answer carries is said by whoever describes the tool in the policy. The failure says so.
- Its environment is `env` of the policy and those of `pass_env` that the caller has; nothing else.
- How a process is started and confined is the `Starter`'s part. It is killed, with everything that
  it started, when its time is up, when it prints too much, and when the call is cancelled.
- Standard error is for the operator: its beginning is kept in the entry, made printable, and the
  run never sees it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from authority.effects.base import Call, EffectFailed, EffectRefused, Performed
from authority.errors import AuthorityError
from authority.kernel.canonical import digest, printable
from authority.kernel.codes import Code
from authority.kernel.requests import MAX_BODY

MAX_OUTPUT = 1024 * 1024
MAX_DEPTH = 32
KEPT_STDERR = 4096
"""The most characters of standard error in an entry."""
FORM = 'An answer is {"result": ...} or {"error": "text"}, and nothing else.'
NAMED = 3
"""How many members that don't belong there are named."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A process that ended. `code` is its exit status, or minus the signal that ended it."""

    code: int
    stdout: bytes
    stderr: bytes
    timed_out: bool


class Starter(Protocol):
    """Runs one confined process to its end."""

    async def run(
        self,
        argv: tuple[str, ...],
        stdin: bytes,
        *,
        base: str,
        env: Mapping[str, str],
        timeout_us: int,
        max_output: int,
    ) -> Ran:
        """Run `argv` with `stdin` and exactly `env`; relative names in it are below `base`.

        At most `max_output` + 1 bytes of each output are kept: one more than `max_output` says that
        there was too much, and the process is killed then. Killed likewise after `timeout_us` and
        when the caller is cancelled. Raises `AuthorityError` or `OSError` when it can't be started.
        """
        ...


class ToolEffect:
    """Performs `tool.call`. `environment` is the caller's, from which `pass_env` picks."""

    def __init__(self, starter: Starter, *, environment: Mapping[str, str]) -> None:
        self._starter = starter
        self._environment = dict(environment)

    async def perform(self, call: Call) -> Performed:
        """Perform an admitted `tool.call`. Raises `EffectFailed` or `EffectRefused`."""
        name = call.resource.name
        tool = call.policy.tools.get(name)
        if tool is None:
            raise EffectRefused(Code.POLICY_DENY, "The policy has no tool of this name.")
        passed = {key: self._environment.get(key) for key in tool.pass_env}
        env = {key: value for key, value in passed.items() if value is not None} | dict(tool.env)
        spent = {"requests": 1, "tool_calls": 1}
        value, facts = await answered(
            self._starter,
            tuple(tool.command),
            call.arguments.arguments,
            tool.base,
            tool.timeout,
            f"tool {name}",
            spent,
            env,
            f"in [tools.{name}] of the policy (reads, secret, fields)",
        )
        return Performed({"result": value}, spent=spent, facts=facts)


async def answered(
    starter: Starter,
    argv: tuple[str, ...],
    arguments: dict[str, Any],
    base: str,
    timeout_us: int,
    called: str,
    spent: Mapping[str, int],
    env: Mapping[str, str] | None = None,
    labelled: str = "by what it was given",
) -> tuple[Any, dict[str, Any]]:
    """The answer of one process and facts about it. `labelled`: where is said what its answers carry.

    Raises `EffectFailed` or `EffectRefused`.
    """
    try:
        ran = await starter.run(
            argv,
            _stdin(arguments),
            base=base,
            env=env or {},
            timeout_us=timeout_us,
            max_output=MAX_OUTPUT,
        )
    except (AuthorityError, OSError) as error:
        raise EffectFailed(
            f"The {called} could not be started.",
            spent=spent,
            facts={"why": printable(str(error), 500)},
        ) from None
    facts = {
        "code": ran.code,
        "size": len(ran.stdout),
        "sha256": digest(ran.stdout),
        "stderr": printable(ran.stderr[: KEPT_STDERR + 1], KEPT_STDERR),
    }
    try:
        return _answer(ran, timeout_us, labelled), facts
    except _Failed as error:
        raise EffectFailed(f"The {called} {error.reason}", spent=spent, facts=facts) from None


class _Failed(Exception):
    """`reason` continues "The tool NAME ..."."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _stdin(arguments: dict[str, Any]) -> bytes:
    try:
        text = json.dumps({"arguments": arguments}, allow_nan=False, ensure_ascii=True)
    except (TypeError, ValueError, RecursionError):
        raise EffectRefused(
            Code.SCHEMA_INVALID,
            "A tool's arguments are JSON: text, numbers, true, false, null, arrays and objects.",
        ) from None
    if len(text) > MAX_BODY:
        raise EffectRefused(Code.SCHEMA_INVALID, "The arguments are larger than a tool may get.")
    return text.encode("ascii") + b"\n"


def _answer(ran: Ran, timeout_us: int, labelled: str) -> Any:
    if ran.timed_out:
        raise _Failed(f"took longer than {timeout_us / 1e6:g} s and was ended.")
    if len(ran.stdout) > MAX_OUTPUT or len(ran.stderr) > MAX_OUTPUT:
        raise _Failed(f"printed more than {MAX_OUTPUT} bytes and was ended.")
    if ran.code < 0:
        raise _Failed(f"was ended by signal {-ran.code}.")
    if ran.code:
        raise _Failed(f"ended with exit code {ran.code}.")
    try:
        document = json.loads(
            ran.stdout.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_constant
        )
        _check(document, 0)
    except (ValueError, RecursionError):
        raise _Failed("did not print one JSON object as tools must.") from None
    if not isinstance(document, dict):
        raise _Failed(f"printed JSON that is no object. {FORM}")
    main = [name for name in ("result", "error") if name in document]
    if len(main) != 1:
        raise _Failed(f"printed an object with {'both' if main else 'neither'} of the two. {FORM}")
    if beside := [name for name in document if name != main[0]]:
        raise _Failed(_more(main[0], beside, labelled))
    if main == ["result"]:
        return document["result"]
    error = document["error"]
    if not isinstance(error, str):
        raise _Failed(f"printed an error that is no text. {FORM}")
    raise _Failed(f"reports: {printable(error, 500)}")


def _more(main: str, beside: list[str], labelled: str) -> str:
    named = ", ".join(f'"{printable(name, 40)}"' for name in beside[:NAMED])
    more = f" and {len(beside) - NAMED} more" if len(beside) > NAMED else ""
    said = f"What its answers carry is said {labelled}, and never by itself."
    return f'printed {named}{more} beside its "{main}". {FORM} {said}'


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is named twice")
    return members


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _check(value: Any, depth: int) -> None:
    """Refuse what could not be handed on: MessagePack has 64-bit integers and Unicode text."""
    if depth > MAX_DEPTH:
        raise ValueError("too deep")
    if isinstance(value, str):
        value.encode("utf-8")  # UnicodeEncodeError, a ValueError, for a lone surrogate
    elif isinstance(value, bool) or value is None:
        return
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise ValueError("integer beyond 64 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("not finite")
    elif isinstance(value, list):
        for item in value:
            _check(item, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            key.encode("utf-8")
            _check(item, depth + 1)
