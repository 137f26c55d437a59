"""`authority matrix`: the specification's thirteen tests as live attacks on this machine.

Exit code 0 only when all thirteen and all their controls hold. With `--against` the attacks that make
sense outside of Authority are made on other sandboxes, and the exit code says whether Authority and
the control without any sandbox came out as they should. With
`--isolation vm` root in the guest attacks too, in a section of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from authority.cli.common import print_json, table
from authority.cli.usage import Parser
from authority.matrix.verdict import Result


def main(arguments: Sequence[str]) -> int:
    made = Parser(
        prog="authority matrix",
        description="The specification's thirteen tests, live, in a temporary state directory.",
    )
    made.add_argument("--json", action="store_true", help="one JSON document on standard output")
    made.add_argument(
        "--against", action="append", metavar="NAME", default=[],
        help="attack another sandbox instead (repeatable; 'all', or a wrong name for the list)",
    )  # fmt: skip
    made.add_argument(
        "--isolation", choices=("namespace", "vm"), default="namespace",
        help="where the attacked runs live",
    )  # fmt: skip
    made.add_argument("--emulate", action="store_true", help="with --isolation vm: without KVM")
    options = made.parse_args(arguments)
    if options.emulate and options.isolation != "vm":
        made.error("--emulate belongs to --isolation vm")
    if options.against:
        if options.isolation != "namespace":
            made.error("--against compares name spaces")
        return _against(options.against, as_json=options.json)
    return _thirteen(options.isolation, emulate=options.emulate, as_json=options.json)


def _progress(name: str, result: Result | None) -> None:
    if not sys.stderr.isatty():
        return
    if result is None:
        sys.stderr.write(f"\r\x1b[K  {name} ...")
    else:
        sys.stderr.write(f"\r\x1b[K  {name}: {'ok' if result.ok else 'FAILED'}\n")
    sys.stderr.flush()


def _thirteen(isolation: str, *, emulate: bool, as_json: bool) -> int:
    from authority.matrix.live import House
    from authority.matrix.runner import perform, perform_in_guest

    house = House(isolation, emulate)
    results = perform(_progress, house=house)
    guest = perform_in_guest(_progress, house=house) if house.machine else []
    if as_json:
        print_json([result.to_json() for result in (*results, *guest)])
    else:
        _show("", results)
        if guest:
            _show("root in the guest", guest)
    return 0 if results and all(r.ok for r in (*results, *guest)) else 1


def _show(title: str, results: Sequence[Result]) -> None:
    rows = [
        (r.invariant, r.test, "ok" if r.ok else "FAILED", r.expected, r.observed) for r in results
    ]
    table(title, ("invariant", "test", "result", "expected", "observed"), rows)
    print("evidence")
    for result in results:
        print(f"  {result.test}: {result.evidence or 'none'}")
    print(f"{sum(r.ok for r in results)} of {len(results)} hold")


def _against(names: Sequence[str], *, as_json: bool) -> int:
    from authority.matrix.against import compare

    def note(text: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K  {text}")
            sys.stderr.flush()

    comparison = compare(names, note)
    note("\r\x1b[K")
    if as_json:
        print_json(comparison.to_json())
    else:
        columns = ("attack", *(p.name for p in comparison.peers))
        table("what an attacker gets", columns, comparison.rows())
        print("sandboxes")
        for peer in comparison.peers:
            print(f"  {peer.name}: {peer.version}{'; ' + peer.note if peer.note else ''}")
        for line in comparison.remarks():
            print(line)
    return 0 if comparison.as_expected() else 1
