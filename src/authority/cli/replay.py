"""`authority replay`: play a recorded run again, with nothing performed.

Exit codes: 0 it went as recorded, as far as that can be compared; 1 it did not, and the first
difference is named.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from authority.audit import query
from authority.audit.store import ContentStore
from authority.audit.verification import verify
from authority.cli.bundle import outside_key
from authority.cli.common import parser, print_json, state_of
from authority.cli.usage import Usage, whole
from authority.errors import AuthorityError
from authority.gate import policyfile, statedir
from authority.gate.statedir import StateDir
from authority.kernel.canonical import printable
from authority.recorded import recording
from authority.replay import bundle_reading
from authority.replay.account import Account
from authority.replay.report import SAME, Report
from authority.replay.run import Source, replay
from authority.replay.stage import Wish
from authority.replay.steps import Steps


def main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    if options.live or options.after is not None:
        return _live(options)
    with contextlib.ExitStack() as stack:
        found = _bundled(options, stack) if options.bundle else _recorded(options)
    if options.json:
        print_json(found.to_json())
    else:
        _say(found)
    return 0 if found.ok else 1


def _live(options: argparse.Namespace) -> int:
    """Go on with a run of this state directory, at its gate."""
    from authority.cli.run import Follower

    if not options.live or options.after is None or not options.run or options.bundle:
        raise Usage("--from N and --live go together, with a run of this state directory")
    directory = state_of(options)
    begun = recording.read(query.lines(directory.log), options.run).start
    if not begun.policy_path or not Path(begun.policy_path).is_file():
        raise AuthorityError(f"the run's policy file {printable(begun.policy_path)} is not there")
    body = policyfile.start_request(Path(begun.policy_path), begun.program, begun.cwd)
    body["continues"] = {"run": options.run, "after": options.after}
    follower = Follower(directory, quiet=options.quiet, as_json=options.json)
    return follower.follow("/v1/runs", body, accept=False)


def _recorded(options: argparse.Namespace) -> Report:
    """A run of this state directory."""
    if not options.run:
        raise Usage("name the run to play", "'authority audit query --kind run.start' lists them")
    directory = state_of(options)
    report = verify(directory.log)
    if not report.ok:
        raise AuthorityError(
            f"the log does not hold at entry {report.first_bad}: {printable(report.problem)}",
            "'authority audit verify' says more; what does not hold is not played",
        )
    sealed = directory.keys / "sealed"
    store = ContentStore(directory.store, keys=sealed if sealed.is_dir() else None)
    source = Source(query.lines(directory.log), store, "state")
    wish = _wish(options, directory)
    return replay(
        source,
        options.run,
        wish,
        account=Account(directory.root / "replays"),
        values=_values(options),
    )


def _bundled(options: argparse.Namespace, stack: contextlib.ExitStack) -> Report:
    """A run from a bundle: recorded in this machine's state directory, where there is one."""
    found = bundle_reading.read(options.bundle, outside_key(options.key))
    run = found.manifest.run
    if options.run not in (None, run):
        raise AuthorityError(f"the bundle is of run {run}")
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="authority-bundle-")))
    source = Source(found.lines, found.unpack(folder), found.digest)
    root = options.state or statedir.default_root()
    directory = statedir.open_existing(root.absolute()) if root.is_dir() else None
    wish = _wish(options, directory)
    wish.image = found.manifest.image
    account = Account(directory.root / "replays") if directory is not None else None
    return replay(source, run, wish, account=account, values=_values(options))


def _wish(options: argparse.Namespace, directory: StateDir | None) -> Wish:
    return Wish(
        values={},
        until=options.until if options.until is not None else -1,
        shown=_stepping(options),
        said=_said(options),
        forbidden=(str(directory.root.resolve()),) if directory is not None else (),
        home=directory.home if directory is not None else lambda _name: "",
    )


def _values(options: argparse.Namespace) -> dict[str, str]:
    return dict(_pair(text) for text in options.env)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    made = parser("replay", "Play a recorded run again: nothing is performed, the log answers.")
    made.add_argument(
        "run",
        metavar="RUN",
        nargs="?",
        help="its id, as 'authority audit query --kind run.start' lists them",
    )
    made.add_argument("--bundle", type=Path, metavar="FILE", help="play the run of a bundle")
    made.add_argument(
        "--key", help="with --bundle: the log's public key, from outside, or its file"
    )
    made.add_argument("--until", type=whole, metavar="N", help="stop when entry N was asked for")
    made.add_argument(
        "--from", type=whole, dest="after", metavar="N", help="with --live: go on after entry N"
    )
    made.add_argument(
        "--live", action="store_true", help="perform for real after entry N: a new run"
    )
    made.add_argument(
        "--step", action="store_true", help="show each request with its labels and budget, and wait"
    )
    made.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE",
        help="a variable of the program whose value is not kept any more",
    )  # fmt: skip
    made.add_argument("--quiet", action="store_true", help="don't show what the program prints")
    return made.parse_args(arguments)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise Usage(f"--env {printable(text, 64)} is not NAME=VALUE")
    return name, value


def _stepping(options: argparse.Namespace) -> Callable[[Any], None] | None:
    if not options.step:
        return None
    steps = Steps()

    def shown(asked: Any) -> None:
        for line in steps.lines(asked):
            print(line, file=sys.stderr)
        if sys.stdin.isatty():
            sys.stderr.write("  [Enter] ")
            sys.stderr.flush()
            sys.stdin.readline()

    return shown


def _said(options: argparse.Namespace) -> Callable[[dict[str, Any]], None]:
    def said(event: dict[str, Any]) -> None:
        if event["event"] == "output" and not options.quiet:
            out = sys.stderr if options.json or event["fd"] == 2 else sys.stdout
            out.write(event["text"])
            out.flush()
        elif event["event"] == "trouble":
            print(f"authority: {printable(event['text'])}", file=sys.stderr)

    return said


def _say(found: Report) -> None:
    out = sys.stderr
    print(
        f"replay of {found.run}: {found.verdict}; {found.matched} of {found.requests} requests "
        f"matched, {found.printed} bytes of output compared",
        file=out,
    )
    for limit in found.limits:
        print(f"  not controlled: {limit}", file=out)
    other = found.divergence
    if other is not None:
        print(f"DIVERGED at entry {other.entry}: {other.what}", file=out)
        print(f"  then  {other.then}", file=out)
        print(f"  now   {other.now}", file=out)
        for line in other.diff:
            print(f"    {line}", file=out)
    elif found.verdict == SAME:
        print("  nothing was performed: no network, no file, no model", file=out)
