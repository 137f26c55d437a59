"""All requests that a policy can be asked about, cut into cells in which only a path or name varies.

Rules
- A *cell* is an effect's family with everything but the path settled: scheme, host, port, query and
  verb. Hosts, ports, queries and verbs that no rule tells apart stand for each other: one that is
  named for itself, and one that nobody names for all others. A host that nobody names stands below
  each suffix that somebody does.
- A file is also asked about in a folder of the run's own and in its home (`policy_files`).
- In a cell, `fs` paths, URL paths and names of runs are words over an alphabet (`alphabets`). Tools,
  agents and outputs are few and are asked for one by one; a tunnel has no path.
- Every effect of `requests.EFFECTS` stands in one family here. One that does not is refused
  (`Undecided`): nothing is proved about an effect that this module was not taught.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from authority.kernel.addresses import host_text, is_address
from authority.kernel.pattern_match import ANY_QUERY, Pattern
from authority.kernel.policy_persist import HOME, OWN
from authority.kernel.requests import EFFECTS
from authority.kernel.resource_files import decode_name, file_text
from authority.kernel.resource_urls import DEFAULT_PORTS
from authority.kernel.resources import Resource, parse_text
from authority.proof.alphabets import FILE, MODEL_NAME, NAMES, PLAIN_NAME, URL
from authority.proof.alphabets import Files as FileWords
from authority.proof.alphabets import Names as NameWords
from authority.proof.alphabets import Paths as PathWords
from authority.proof.automata import Searcher, Undecided

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY")
FAMILIES: Final[dict[str, tuple[str, ...]]] = {
    "fs": ("fs",),
    "http": ("http", "https"),
    "tool": ("tool",),
    "msg": ("run",),
    "output": ("output",),
    "model": ("model",),
    "mcp": ("mcp",),
    "sys": ("sys",),
    "value": ("handle", "room"),
}
_SPECIAL: Final[dict[str, tuple[str, ...]]] = {
    "agent.spawn": ("agent",),
    "agent.wait": ("run",),
    "mcp.serve": ("run",),
    "net.connect": ("tcp",),
    "value.reveal": ("handle",),
    "value.compute": ("room",),
    "net.resolve": ("dns",),
}


class Cell(msgspec.Struct, frozen=True):
    """Everything about a request but its path or name. `name`: that too, where it is settled."""

    scheme: str
    host: str = ""
    port: int = 0
    query: str | None = None
    verb: str = ""
    name: str = ""

    def covered(self, pattern: Pattern) -> bool:
        """Whether a pattern covers this cell, the path aside."""
        return (
            self.scheme in pattern.schemes
            and pattern.port in (0, self.port)
            and pattern.covers_host(self.host)
            and pattern.admits(self.verb, self.query)
        )

    def text(self, word: tuple[int, ...]) -> str:
        """The canonical text of a resource in this cell."""
        if self.scheme == "fs":
            raw = FILE.text(word)
            return file_text(tuple(map(decode_name, raw.split(b"/")[1:])) if raw else ())
        if self.scheme in DEFAULT_PORTS:
            tail = "" if self.query is None else f"?{self.query}"
            path = URL.text(word).decode("ascii")
            return f"{self.scheme}://{host_text(self.host)}:{self.port}{path}{tail}"
        if self.scheme == "tcp":
            return f"tcp://{host_text(self.host)}:{self.port}"
        return f"{self.scheme}:{self.name or NAMES.text(word[1:]).decode('ascii')}"


def schemes_of(effect: str) -> tuple[str, ...]:
    """The schemes of an effect's resources. Raises `Undecided` for one that is not known here."""
    schemes = _SPECIAL.get(effect) or FAMILIES.get(effect.partition(".")[0])
    if schemes is None or effect not in EFFECTS:
        raise Undecided(
            f"nothing is known here about the effect {effect!r}",
            f"effects: {', '.join(sorted(EFFECTS))}",
        )
    return schemes


def searchers() -> dict[str, Searcher]:
    """A searcher for each scheme whose resources hold a path or a name."""
    url = Searcher(URL, PathWords())
    plain = Searcher(NAMES, NameWords(PLAIN_NAME))
    return {
        "fs": Searcher(FILE, FileWords()),
        "http": url,
        "https": url,
        "run": plain,
        "model": Searcher(NAMES, NameWords(MODEL_NAME)),
    }


def resource_of(cell: Cell, word: tuple[int, ...]) -> Resource:
    """The resource of a word, read as the gate reads one. Raises `ResourceError`."""
    return parse_text(cell.text(word))


def cells(scheme: str, patterns: Iterable[Pattern], names: Iterable[str] = ()) -> Iterator[Cell]:
    """The cells of a scheme that the patterns tell apart; `names` are those of tools or agents."""
    if scheme == "fs":
        yield from (Cell(scheme, verb=verb) for verb in ("", OWN, HOME))
    elif scheme in ("run", "model"):
        yield Cell(scheme)
    elif scheme == "dns":
        hosts = [p.host for p in patterns if p.schemes & {"http", "https", "tcp"}]
        yield from (Cell(scheme, name=host) for host in _hosts(hosts) if not is_address(host))
    elif scheme == "mcp":
        return  # no server is defined here: `claims` refuses policies that define one
    elif scheme == "output":
        yield from (Cell(scheme, name=name) for name in ("stdout", "stderr"))
    elif scheme == "sys":
        yield from (Cell(scheme, name=name) for name in ("time", "random", "uuid"))
    elif scheme in ("handle", "room"):
        # No rule names one: all handles are alike, and there is one room.
        yield Cell(scheme, name={"handle": "h1", "room": "python"}[scheme])
    elif scheme in ("tool", "agent"):
        yield from (Cell(scheme, name=name) for name in sorted(set(names)))
    else:
        yield from _places(scheme, [p for p in patterns if scheme in p.schemes])


def _places(scheme: str, patterns: list[Pattern]) -> Iterator[Cell]:
    # The named hosts that lie below a suffix are in its answer, so each host sees few patterns.
    exact: dict[str, list[Pattern]] = {}
    for pattern in patterns:
        exact.setdefault(pattern.host, []).append(pattern)
    for host in _hosts(exact):
        here = list(exact.get(host, ()))
        suffix = host.partition(".")[2]
        while suffix:
            here += [p for p in exact.get(suffix, ()) if p.subdomains]
            suffix = suffix.partition(".")[2]
        here = [p for p in here if p.covers_host(host)]
        ports = {p.port for p in here if p.port} | {DEFAULT_PORTS.get(scheme, 443)}
        for port in (*sorted(ports), _fresh_port(ports)):
            if scheme == "tcp":
                yield Cell(scheme, host, port)
                continue
            at_port = [p for p in here if p.port in (0, port)]
            verbs = {verb for p in at_port for verb in p.verbs or ()} | {"GET", "HEAD"}
            queries = {p.query for p in at_port if p.query is not None} - {ANY_QUERY}
            for verb in (*sorted(verbs), _fresh_verb(verbs)):
                for query in (None, *sorted(queries), _fresh_query(queries)):
                    yield Cell(scheme, host, port, query, verb)


def _hosts(named: Iterable[str]) -> Iterator[str]:
    """Named hosts, and one that nobody names: below each of them, and elsewhere."""
    known = set(named) - {""}
    taken = set(known)
    for host in known:
        labels = host.split(".")
        taken.update(".".join(labels[n:]) for n in range(1, len(labels)))
    yield _fresh_label(taken, "")
    for host in sorted(known, key=lambda each: (len(each), each)):
        yield host
        if not is_address(host):
            yield _fresh_label(taken, f".{host}")


def _fresh_label(taken: set[str], suffix: str) -> str:
    return next(name for n in range(1 << 30) if (name := _letters(n) + suffix) not in taken)


def _letters(number: int) -> str:
    letters = chr(ord("a") + number % 26)
    return letters if number < 26 else _letters(number // 26 - 1) + letters


def _fresh_port(ports: set[int]) -> int:
    return next(port for port in range(1, 65536) if port not in ports)


def _fresh_verb(verbs: set[str]) -> str:
    made = ("X" * n for n in range(1, len(verbs) + 2))
    return next(verb for verb in (*METHODS, *made) if verb not in verbs)


def _fresh_query(queries: set[str]) -> str:
    return next(q for n in range(1 << 30) if (q := _letters(n - 1) if n else "") not in queries)
