"""What an attack tried, what came of it, and the verdict of a test.

Rules
- An `Attempt` says what was tried, whether the attacker got it, and what the machine answered.
- A test holds when something was tried, nothing of it worked, and every control worked. A test that
  tried less than it should (a program that died early) does not hold.
- `observed` and `evidence` are short and printable, whatever an attacker wrote.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from authority.kernel.canonical import printable

SHOWN = 4
"""How many names or answers a sentence lists."""
WIDTH = 240


@dataclass(frozen=True)
class Attempt:
    """One thing that was tried; `worked`: the attacker (or the control) got what it wanted."""

    name: str
    worked: bool
    detail: str = ""


@dataclass(frozen=True)
class Result:
    """One row of the matrix, as `--json` has it."""

    invariant: str
    test: str
    expected: str
    observed: str
    ok: bool
    evidence: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Row:
    """A row before anything was tried."""

    invariant: str
    name: str
    expected: str

    def judge(
        self,
        attempts: Sequence[Attempt],
        controls: Sequence[Attempt],
        *,
        at_least: int = 1,
        evidence: str = "",
    ) -> Result:
        """The verdict. `at_least` attempts must have been made for it to mean anything."""
        through = [a for a in attempts if a.worked]
        broken = [c for c in controls if not c.worked]
        enough = len(attempts) >= at_least
        ok = enough and bool(controls) and not through and not broken
        said = []
        if through:
            said.append(f"{len(through)} of {len(attempts)} WORKED: {named(through)}")
        elif not enough:
            said.append(f"only {len(attempts)} of {at_least} attempts were made")
        else:
            said.append(f"0 of {len(attempts)} worked: {answers(attempts)}")
        if broken:
            said.append(f"control FAILED: {named(broken)}")
        elif not controls:
            said.append("no control was made")
        proof = [evidence] if evidence else []
        if controls and not broken:
            proof.append(f"control: {len(controls)} of {len(controls)} worked, {named(controls)}")
        return Result(
            self.invariant,
            self.name,
            self.expected,
            printable("; ".join(said), WIDTH),
            ok,
            printable("; ".join(proof), 2 * WIDTH),
        )

    def failed(self, error: BaseException) -> Result:
        """The verdict when the test itself broke: nothing is known, so it does not hold."""
        text = printable(f"the test broke: {type(error).__name__}: {error}", WIDTH)
        return Result(self.invariant, self.name, self.expected, text, False, "")


def answers(attempts: Iterable[Attempt]) -> str:
    """How often which answer came, the most frequent first."""
    counted = Counter(a.detail or "refused" for a in attempts)
    parts = [f"{detail} {count}" for detail, count in counted.most_common(SHOWN)]
    rest = len(counted) - SHOWN
    return ", ".join(parts) + (f" and {rest} other answers" if rest > 0 else "")


def named(attempts: Sequence[Attempt]) -> str:
    """Names with their answers, the first few."""
    parts = [f"{a.name} ({a.detail})" if a.detail else a.name for a in attempts[:SHOWN]]
    rest = len(attempts) - SHOWN
    return ", ".join(parts) + (f" and {rest} more" if rest > 0 else "")


def from_lines(lines: Iterable[Mapping[str, Any]]) -> list[Attempt]:
    """What an attacking program printed: its attempts. Other lines are passed over."""
    return [
        Attempt(
            printable(str(line["name"]), 80),
            line.get("worked") is not False,
            printable(str(line.get("detail", "")), 80),
        )
        for line in lines
        if "name" in line
    ]


def finished(lines: Sequence[Mapping[str, Any]], what: str) -> Attempt:
    """A control: the program said at its end how many attempts it made, and that many came."""
    count = sum("name" in line for line in lines)
    done = any(line.get("done") == count for line in lines)
    return Attempt(f"{what} ran to its end", done and count > 0, f"{count} attempts")
