"""`authority incident`: see incidents, and take the steps that lead out of them.

Exit codes: 0 done (`show` with nothing open too), 1 an incident is open (`show`), 125 refused: the line
says what the step still needs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from authority.audit import query, story
from authority.audit.verification import verify
from authority.cli.common import add_common, print_json, state_of, table, when
from authority.cli.usage import Parser, whole
from authority.errors import AuthorityError
from authority.gate import policyfile
from authority.gate.client import client
from authority.kernel.canonical import printable
from authority.kernel.incidents import HOUR, STEPS


def main(arguments: Sequence[str]) -> int:
    made = Parser(
        prog="authority incident", description="Incidents, and the steps that lead out of them."
    )
    parts = made.add_subparsers(dest="what", required=True, metavar="STEP")

    def part(name: str, text: str, *, number: bool = True) -> argparse.ArgumentParser:
        one = parts.add_parser(name, help=text, description=text)
        if number:
            one.add_argument("incident", type=whole, help="its number")
        add_common(one)
        return one

    one = part("show", "list incidents, or show one", number=False)
    one.add_argument("incident", type=whole, nargs="?", help="its number (default: all)")
    part("timeline", "what happened, entry by entry, and how far it reached")
    one = part("evidence", "verify the log, write the report, and record that step")
    one.add_argument("--output", type=Path, metavar="DIR", help="write report and log slice there")
    one = part("cause", "say what the cause is, and which entries show it")
    one.add_argument("--text", required=True, help="the cause, in your words")
    one.add_argument(
        "--entry", type=whole, action="append", required=True, help="one that shows it; repeatable"
    )
    one = part("patch", "name the policy, or this version, that mends it")
    one.add_argument("--policy", type=Path, metavar="FILE", help="the mended policy")
    one.add_argument("--version", action="store_true", help="this program is the patch")
    one = part("prove", "give the certificates that show it mended ('authority policy prove')")
    one.add_argument(
        "certificate", type=Path, nargs="+", metavar="FILE", help="as '--certificate' wrote it"
    )
    one = part("test", "make the matrix's attacks and search the kernel, and record the results")
    one.add_argument(
        "--junit", type=Path, metavar="FILE", help="results of a test suite beside that"
    )
    one.add_argument("--depth", type=whole, default=3, help="of the kernel's search")
    one = part("deploy", "say from which file the patch is used")
    one.add_argument("--policy", type=Path, metavar="FILE", help="the mended policy")
    one = part("resume", "close the incident, and lift a halt that it caused")
    one.add_argument("--reason", required=True, help="why it is safe to go on")
    one = part("report", "open one: somebody saw something", number=False)
    one.add_argument("--what", required=True, help="what was seen, in a word or two")
    one.add_argument("--detail", default="", help="more about it")
    one.add_argument("--run", default="", help="about one run; without it everything is halted")
    options = made.parse_args(arguments)
    return _WHAT[options.what](options)


def _cases(options: argparse.Namespace) -> list[dict[str, Any]]:
    found = client(state_of(options)).call("GET", "/v1/incidents", {})
    return sorted(found["incidents"], key=lambda case: case["id"])


def _show(options: argparse.Namespace) -> int:
    cases = _cases(options)
    if options.incident is not None:
        cases = [case for case in cases if case["id"] == options.incident]
        if not cases:
            raise AuthorityError(
                f"there is no incident {options.incident}", "'authority incident show' lists them"
            )
    if options.json:
        print_json(cases)
    elif not cases:
        print("no incident")
    elif options.incident is not None:
        _one(cases[0])
    else:
        rows = [
            (
                str(case["id"]), when(case["times"]["detected"])[:19], case["what"],
                "everything" if case["wide"] else f"run {case['run']}", case["step"],
                "-" if case["step"] == "resumed" else following(case),
            )
            for case in cases
        ]  # fmt: skip
        table("", ("incident", "detected", "what", "concerns", "step", "next"), rows)
    return 1 if any(case["step"] != "resumed" for case in cases) else 0


def following(case: dict[str, Any]) -> str:
    """The step that is due."""
    place = STEPS.index(case["step"])
    return STEPS[place + 1] if place + 1 < len(STEPS) else ""


def _one(case: dict[str, Any]) -> None:
    concerns = "everything" if case["wide"] else f"run {case['run']}"
    print(f"incident {case['id']}: {printable(case['what'])}, about {concerns}")
    print(f"  {printable(case['detail'])}")
    for name in ("policy", "patch"):
        if case[name]:
            print(f"  {name} {case[name]}")
    began = case["times"]["detected"]
    rows = []
    for step in STEPS:
        if step in case["times"]:
            after = (case["times"][step] - began) / 1_000_000
            rows.append((step, str(case["at"][step]), f"+{after:.3f} s", case["by"][step]))
        else:
            rows.append((step, "-", "", "next" if step == following(case) else ""))
    table("", ("step", "entry", "after", "by"), rows, right=("entry", "after"))
    for step, what in (("halted", "halted"), ("resumed", "resumed")):
        if step in case["times"]:
            took = case["times"][step] - began
            verdict = "within" if took <= HOUR else "NOT within"
            print(f"  {what} {verdict} the specification's hour ({took / 1_000_000:.3f} s)")


def _timeline(options: argparse.Namespace) -> int:
    told = story.tell(query.read(state_of(options).log), options.incident)
    if options.json:
        print_json({"timeline": told.timeline, "reach": told.reach.plain()})
        return 0
    from authority.cli.entries import summary

    rows = [
        (str(e["seq"]), when(e["time"])[11:23], e.get("run", "-"), e["kind"], summary(e))
        for e in told.timeline
    ]
    table("", ("entry", "time", "run", "kind", "what"), rows, right=("entry",))
    _reach(told.reach)
    return 0


def _reach(reach: story.Reach) -> None:
    rows = []
    for kind in ("read", "changed", "hosts", "tools", "models", "messages"):
        for name, seqs in getattr(reach, kind).items():
            rows.append((kind, printable(name, 100), " ".join(map(str, seqs[:8]))))
    table("how far it reached", ("what", "resource", "entries"), rows)
    for run, first in reach.hostile.items():
        sources = ", ".join(printable(s, 80) for s in first["sources"][:4])
        print(f"  run {run} first read something untrusted in entry {first['entry']}: {sources}")
    if reach.in_doubt:
        print(f"  in doubt (begun, end not recorded): {', '.join(map(str, reach.in_doubt))}")


def _evidence(options: argparse.Namespace) -> int:
    directory = state_of(options)
    checked = verify(directory.log)
    if not checked.ok:
        raise AuthorityError(
            "the log does not verify, so nothing can rest on it",
            "'authority audit verify' says why",
        )
    told = story.tell(query.read(directory.log), options.incident)
    report = json.dumps(
        {
            "incident": told.incident,
            "steps": told.steps,
            "reach": told.reach.plain(),
            "entries": [e["seq"] for e in told.timeline],
            "verified": checked.entries - 1,
            "head": checked.head,
        },
        sort_keys=True,
        indent=2,
    )
    if options.output is not None:
        _export(directory, options, told, report)
    body = {"verified": checked.entries - 1, "report": report}
    return _taken(options, "forensics", body)


def _export(directory: Any, options: argparse.Namespace, told: story.Story, report: str) -> None:
    """The report, and the entries from the first to the last of the timeline with their proofs."""
    from authority.audit import prove
    from authority.audit.checkpoints import load_key

    options.output.mkdir(mode=0o700)
    (options.output / "report.json").write_text(report + "\n")
    first, last = told.timeline[0]["seq"], told.timeline[-1]["seq"]
    key = load_key(directory.signing_key).public
    with open(options.output / "log.jsonl", "xb") as out:
        for line in prove.export(directory.log, first, last, key):
            out.write(line)
    print(f"wrote {options.output}/report.json and log.jsonl", file=sys.stderr)


def _cause(options: argparse.Namespace) -> int:
    return _taken(options, "cause", {"text": options.text, "entries": options.entry})


def _patch(options: argparse.Namespace) -> int:
    if (options.policy is None) is not options.version:
        raise AuthorityError("the patch is a policy or this version", "--policy FILE or --version")
    if options.version:
        return _taken(options, "patched", {"kind": "version"})
    return _taken(options, "patched", {"kind": "policy", **policy_body(options.policy)})


def policy_body(path: Path) -> dict[str, Any]:
    """The policy as the gate reads it. Naming it is the person's word that what is sent is meant."""
    body = policyfile.start_request(path, (), os.curdir)
    meant = policyfile.read_sent(body["policy_sources"], body["policy_path"]).policy
    return {**body, "accept": meant.digest}


def _prove(options: argparse.Namespace) -> int:
    texts = [path.read_text("utf-8") for path in options.certificate]
    return _taken(options, "proved", {"certificates": texts})


def _test(options: argparse.Namespace) -> int:
    from authority.cli.selftest import self_test

    return _taken(options, "tested", self_test(options.depth, options.junit))


def _deploy(options: argparse.Namespace) -> int:
    return _taken(
        options, "deployed", policy_body(options.policy) if options.policy is not None else {}
    )


def _resume(options: argparse.Namespace) -> int:
    return _taken(options, "resumed", {"reason": options.reason}, resume=True)


def _report(options: argparse.Namespace) -> int:
    body = {"what": options.what, "detail": options.detail, "run": options.run}
    found = client(state_of(options)).call("POST", "/v1/incidents", body)
    if options.json:
        print_json(found)
    else:
        print(f"incident {found['incident']} is open")
    return 0


def _taken(
    options: argparse.Namespace, step: str, body: dict[str, Any], *, resume: bool = False
) -> int:
    path = f"/v1/incidents/{options.incident}/{step}"
    found = client(state_of(options), resume=resume).call("POST", path, body)
    if options.json:
        print_json(found)
    else:
        print(f"incident {options.incident}: {step}, entry {found['seq']}")
    return 0


_WHAT = {
    "show": _show,
    "timeline": _timeline,
    "evidence": _evidence,
    "cause": _cause,
    "patch": _patch,
    "prove": _prove,
    "test": _test,
    "deploy": _deploy,
    "resume": _resume,
    "report": _report,
}
