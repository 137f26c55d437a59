"""`authority audit`: verify, show, tail, query, prove and export the log.

Rules
- Reading needs no gate and no lock; a live log is read as far as it is written.
- `verify` exits 0 only for a whole chain and names the first bad entry. Without a key from outside it
  says that nobody independent has witnessed the log.
- Entries are shown from their stored, printable ASCII.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from authority.audit import checkpoints, prove, query
from authority.audit.notes import VerifyKey
from authority.audit.query import Filter
from authority.audit.store import ContentStore
from authority.audit.verification import Report, verify
from authority.audit.witness import DirectoryWitness
from authority.cli import bundle as bundles
from authority.cli import entries, proof
from authority.cli.common import add_common, print_json, state_of
from authority.cli.usage import Parser, Usage, some, whole
from authority.errors import AuthorityError
from authority.gate.client import client
from authority.gate.statedir import StateDir
from authority.kernel.canonical import printable
from authority.kernel.entries import KIND_NAMES
from authority.rejudge.log import Rejudged, rejudge
from authority.rejudge.sources import Sources

_PARTS = {
    "run": "7601413ffacb",
    "kind": "denied, admit or run.start",
    "effect": "http.request",
    "code": "E_POLICY_DENY",
}


def main(arguments: Sequence[str]) -> int:
    made = Parser(prog="authority audit", description="The log: verify, show and export it.")
    parts = made.add_subparsers(
        dest="what",
        required=True,
        metavar="|".join(("verify", "show", "tail", "query", "prove", "export", "bundle")),
    )
    one = parts.add_parser("verify", help="check the whole chain, checkpoints and witnesses")
    one.add_argument(
        "--key", help="the log's public key, kept outside: its text, a file, or its fingerprint"
    )
    one.add_argument(
        "--witness",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="a witness's folder, kept by somebody else; repeatable",
    )
    one.add_argument("--log", type=Path, metavar="DIR", help="a copy of a log, instead of --state")
    one.add_argument(
        "--rejudge", action="store_true", help="recompute every verdict from the log, and compare"
    )
    one.add_argument("--store", type=Path, metavar="DIR", help="the content store beside --log")
    one.add_argument("--bundle", type=Path, metavar="FILE", help="a run's bundle, instead of a log")
    one.add_argument(
        "--proof", type=Path, metavar="FILE", help="a proof or an export, instead of a log"
    )
    one = parts.add_parser(
        "bundle", help="one run as a file that can be checked and played elsewhere"
    )
    one.add_argument("run", help="its id, as 'authority audit query --kind run.start' lists them")
    one.add_argument("--output", type=Path, required=True, metavar="FILE", help="a new file")
    one.add_argument("--with-keys", action="store_true", help="the keys of what is sealed, too")
    one.add_argument("--alone", action="store_true", help="without the lines of other runs")
    one = parts.add_parser("show", help="one entry, or the last ones")
    one.add_argument("entry", nargs="?", type=whole, help="its number (default: the last ones)")
    one.add_argument("-n", type=some, default=20, help="how many (default: 20)")
    one = parts.add_parser("tail", help="the last entries, and with -f what comes")
    one.add_argument("-n", type=some, default=10, help="how many (default: 10)")
    one.add_argument("-f", "--follow", action="store_true", help="go on with what comes")
    one = parts.add_parser("query", help="entries that match")
    for name, such in _PARTS.items():
        one.add_argument(
            f"--{name}", action="append", default=[], help=f"such as {such}; repeatable"
        )
    one.add_argument(
        "--resource",
        default="",
        metavar="GLOB",
        help="such as 'fs:*/docs/*'; a star passes slashes",
    )
    one.add_argument("--since", default="", metavar="TIME", help="ISO 8601, or 10m, 2h, 3d ago")
    one.add_argument("--until", default="", metavar="TIME", help="the same; it is not included")
    one = parts.add_parser("prove", help="proof that an entry is in the log, for a stranger")
    one.add_argument("entry", type=whole, help="its number")
    one = parts.add_parser("export", help="a range of entries, with a proof")
    one.add_argument("first", type=whole, help="the first entry's number")
    one.add_argument("last", type=whole, help="the last one's, included")
    one.add_argument(
        "--output", type=Path, metavar="FILE", help="a new file (default: standard output)"
    )
    for part in parts.choices.values():
        add_common(part)
    options = made.parse_args(arguments)
    return _WHAT[options.what](options)


def _key(directory: StateDir) -> VerifyKey:
    return checkpoints.load_key(directory.signing_key).public


def _outside_key(text: str, local: VerifyKey | None) -> VerifyKey | None:
    """The key that the person kept, or the one here when its fingerprint is the one they kept."""
    if not text:
        return None
    digits = "".join(text.split()).lower()
    if re.fullmatch(r"[0-9a-f]{64}", digits):
        if local is None or "".join(local.fingerprint.split()) != digits:
            raise AuthorityError(
                "the key of this log has another fingerprint",
                "either this is not the log that you know, or the fingerprint was copied wrongly",
            )
        return local
    return bundles.outside_key(text)


def _verify(options: argparse.Namespace) -> int:
    if options.bundle is not None:
        return bundles.verify(options)
    if options.proof is not None:
        return proof.verify(options)
    if options.log is not None:
        directory, local, witnesses = options.log, None, []
        store, sealed = options.store, None
    else:
        state = state_of(options)
        directory, local = state.log, _key(state)
        witnesses = [DirectoryWitness(state.witness)]
        store, sealed = options.store or state.store, state.keys / "sealed"
    witnesses += [DirectoryWitness(path) for path in options.witness]
    progress = _Progress() if sys.stderr.isatty() and not options.json else None
    report = verify(
        directory,
        key=_outside_key(options.key or "", local),
        local_key=local,
        witnesses=witnesses,
        progress=progress,
    )
    judged = None
    if options.rejudge and report.ok:
        judged = _judged_again(directory, store, sealed, progress)
    if progress:
        progress.end()
    if options.json:
        print_json({**report.to_json(), **({"rejudged": judged.to_json()} if judged else {})})
    else:
        _say(report)
        if judged:
            say_judged(judged)
    if report.ok and (judged is None or judged.ok):
        return 0
    if options.log is None:
        if report.ok and judged:
            first = judged.differences[0]
            _open_incident(state, "rejudgement", f"entry {first.seq}: {first.what}", first.seq)
        else:
            _open_incident(state, "chain", f"entry {report.first_bad}: {report.problem}", -1)
    return 1


def _open_incident(state: StateDir, what: str, detail: str, of: int) -> None:
    """The evidence of this state directory failed: its gate halts everything, if it can still run."""
    sys.stdout.flush()
    body = {"what": what, "detail": printable(detail, 400), "of": of}
    try:
        found = client(state).call("POST", "/v1/incidents", body)
    except AuthorityError as error:
        print(f"no incident could be opened: {error.message}", file=sys.stderr)
    else:
        print(f"incident {found['incident']} is open: everything is halted", file=sys.stderr)


def _judged_again(
    directory: Path, store: Path | None, sealed: Path | None, progress: _Progress | None
) -> Rejudged:
    """Only what is there is opened: an auditor's copy is not written to."""
    found = None
    if store is not None:
        if not store.is_dir():
            raise AuthorityError(
                f"there is no content store at {printable(str(store))}", "name it with --store"
            )
        keys = sealed if sealed is not None and sealed.is_dir() else None
        found = ContentStore(store, keys=keys)
    return rejudge(directory, Sources(found, sealed=sealed is not None), progress=progress)


class _Progress:
    def __init__(self) -> None:
        self._last = -1

    def __call__(self, done: int, total: int) -> None:
        percent = done * 100 // total if total else 100
        if percent != self._last:
            self._last = percent
            sys.stderr.write(f"\rverifying [{'#' * (percent // 4):<25}] {percent:3}%")
            sys.stderr.flush()

    def end(self) -> None:
        sys.stderr.write("\r\x1b[K")


def _say(report: Report) -> None:
    if report.ok:
        print(f"the chain is whole: {report.entries} entries, {report.witnessed}")
        print(f"  head {report.head}")
        print(f"  {report.covered} entries stand under {report.checkpoints} signed checkpoints")
        if report.covered < report.entries:
            print(
                f"  entries from {report.covered} on are under no checkpoint yet: that they were "
                "cut off could not be told"
            )
        if report.writing:
            print("  a gate is writing: the last line was not complete yet")
    else:
        print(f"NOT CONSISTENT at entry {report.first_bad}: {printable(report.problem)}")
        print(f"  the {report.entries} entries before it check out")


def say_judged(found: Rejudged) -> None:
    """What came of judging again."""
    if found.ok:
        print(f"every verdict judges the same again: {found.judged} recomputed")
    else:
        print(f"{found.different} ENTRIES JUDGE DIFFERENTLY of {found.judged} recomputed")
        for difference in found.differences:
            print(f"  entry {difference.seq}: {printable(difference.what)}")
    for what, count in found.given.items():
        print(f"  taken as given {count} times: {what}")


def _show(options: argparse.Namespace) -> int:
    directory = state_of(options).log
    if options.entry is not None:
        entry, line = query.find(directory, options.entry)
        if options.json:
            print(line.decode("ascii"))
        else:
            entries.show(entry)
        return 0
    entries.listed(query.tail(directory, last=options.n), options.json)
    return 0


def _tail(options: argparse.Namespace) -> int:
    found = query.tail(state_of(options).log, last=options.n, follow=options.follow)
    for entry in found:
        print(
            json.dumps(entry, sort_keys=True) if options.json else entries.line(entry), flush=True
        )
    return 0


def _query(options: argparse.Namespace) -> int:
    for kind in options.kind:
        if kind not in KIND_NAMES:
            near = get_close_matches(kind, KIND_NAMES, 1)
            raise Usage(
                f"{printable(kind, 60)} is no kind of entry"
                + (f"; did you mean {near[0]}?" if near else ""),
                f"kinds: {', '.join(sorted(KIND_NAMES))}",
            )
    wanted = Filter(
        runs=frozenset(options.run),
        kinds=frozenset(options.kind),
        effects=frozenset(options.effect),
        codes=frozenset(options.code),
        since=_time(options.since) or 0,
        until=_time(options.until),
        resource=options.resource,
    )
    entries.listed(query.read(state_of(options).log, wanted), options.json)
    return 0


def _time(text: str) -> int | None:
    import time
    from datetime import UTC, datetime

    if not text:
        return None
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    if text[-1] in units and text[:-1].isdigit():
        return time.time_ns() // 1000 - int(text[:-1]) * units[text[-1]] * 1_000_000
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise Usage(
            f"{printable(text)!r} is no time", "write 2026-01-31T12:00, or 10m, 2h, 3d"
        ) from error
    return int(found.replace(tzinfo=found.tzinfo or UTC).timestamp() * 1_000_000)


def _prove(options: argparse.Namespace) -> int:
    directory = state_of(options)
    print_json(prove.prove(directory.log, options.entry, _key(directory)))
    return 0


def _export(options: argparse.Namespace) -> int:
    directory = state_of(options)
    last = max((e["seq"] for e in query.tail(directory.log, last=1)), default=-1)
    if not options.first <= options.last <= last:
        raise AuthorityError(
            f"entries {options.first} to {options.last} are no range of this log",
            f"its entries are 0 to {last}",
        )
    lines = prove.export(directory.log, options.first, options.last, _key(directory))
    if options.output is None:
        for line in lines:
            sys.stdout.write(line.decode("ascii"))
        return 0
    try:
        with open(options.output, "xb") as out:
            for line in lines:
                out.write(line)
    except FileExistsError:
        raise AuthorityError(
            f"{printable(str(options.output), 400)} is there already, and is left as it is",
            "name another file",
        ) from None
    return 0


def _bundle(options: argparse.Namespace) -> int:
    return bundles.make(options, _key(state_of(options)))


_WHAT = {
    "bundle": _bundle,
    "verify": _verify,
    "show": _show,
    "tail": _tail,
    "query": _query,
    "prove": _prove,
    "export": _export,
}
