"""`authority suggest RUN`: the smallest additions to its policy that would have let a run pass.

Rules
- What was denied is read from the log; what a run with `--suggest` looked for and could not see comes
  from its gate when it ends, and whether that exists is looked up here, with the person's own eyes.
- Judged by the policy that the run had. To write a file, the policy's text as it is now is the base,
  and what that allows by now is left out.
- Two refusals leave no entry, since nothing inside asks: a program that is started where none may be,
  and a server of this machine that is looked for on the run's own loopback. A run that ended badly is
  told of both.
- A tool that was called and that nobody described gets a proposal of its own (`suggest_tools`).
- A file is written anew, never over one that is there, and only beside the policy: the paths in it are
  relative to where it lies.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from authority.audit import query
from authority.audit.store import ContentStore
from authority.cli import suggest_tools
from authority.cli.common import parser, print_json, state_of, write_new
from authority.errors import AuthorityError
from authority.gate import policyfile, starting
from authority.gate.statedir import StateDir
from authority.kernel import resources
from authority.kernel.canonical import printable
from authority.kernel.policy import Policy, PolicyError, from_canonical
from authority.kernel.policy_edit import with_additions
from authority.kernel.resources import ResourceError
from authority.kernel.suggest import Suggestion, Wish, suggest, toml

MOST_LEFT = 40
_SILENT = frozenset({"frame", "halt", "sequence"})


def main(arguments: Sequence[str]) -> int:
    made = parser("suggest", "The smallest additions to a policy that would have let a run pass.")
    made.add_argument(
        "run",
        nargs="?",
        help="a run's id, as 'authority audit query --kind run.start' lists them (default: the last)",
    )
    add_options(made)
    options = made.parse_args(arguments)
    directory = state_of(options)
    options.run = options.run or _last(directory)
    found, written = made_for(directory, options.run, options)
    tools = suggest_tools.proposed(directory, options.run)
    unsaid = silent(directory, options.run)
    if options.json:
        print_json(plain(options.run, found, written, tools, unsaid))
    else:
        print("\n".join(lines(options.run, found, written, tools, unsaid)))
    return 0


def _last(directory: StateDir) -> str:
    """The last run that a person started. Raises `AuthorityError` when there is none."""
    last = ""
    for entry in query.read(directory.log):
        if entry["kind"] == "run.start" and not entry.get("parent"):
            last = entry["run"]
    if not last:
        raise AuthorityError("no run stands in the log", "'authority run' makes one")
    return last


def add_options(made: argparse.ArgumentParser) -> None:
    """What this command and `run --suggest` share."""
    made.add_argument(
        "--exact", action="store_true", help="never put files of one folder together as FOLDER/*"
    )
    made.add_argument(
        "--write",
        type=Path,
        metavar="FILE",
        help="write a new policy: the old one, with them in it",
    )


def made_for(
    directory: StateDir,
    run: str,
    options: argparse.Namespace,
    unseen: Iterable[Sequence[Any]] = (),
) -> tuple[Suggestion, str]:
    """What to add for a run, and the file that was written, if one was named.

    Raises `AuthorityError`.
    """
    start, wishes = _history(directory, run)
    wishes += [wish for each in unseen if (wish := _looked(each)) is not None]
    if options.write is None:
        return _found(directory, start, wishes, None, options.exact), ""
    path = start.get("policy_path") or os.path.join(start["cwd"], starting.NO_POLICY)
    target = _target(options.write, path)
    if os.path.basename(path) == starting.NO_POLICY:
        text, policy = "version = 1\n", None
    else:
        read = policyfile.read(Path(path))
        text, policy = read.sources[read.path], read.policy
    found = _found(directory, start, wishes, policy, options.exact)
    made = with_additions(text, found.additions, format=policyfile.format_of(path))
    return found, write_new(target, made)


def _found(
    directory: StateDir,
    start: Mapping[str, Any],
    wishes: list[Wish],
    policy: Policy | None,
    exact: bool,
) -> Suggestion:
    """`policy` is the text as it is now, when that matters; what is protected, the run's own knows."""
    own = from_canonical(ContentStore(directory.store).get(start["policy"]))
    wishes = [_placed(own, wish) for wish in wishes]
    try:
        found = suggest(own, wishes, exact=exact)
        if policy is None:
            return found
        left = {one.wish for one in found.left}
        again = suggest(policy, [w for w in wishes if w not in left], exact=exact)
        return Suggestion(again.additions, (*found.left, *again.left), again.warnings)
    except PolicyError as error:
        raise AuthorityError(
            f"nothing can be suggested for run {start['run']}: {error.message}",
            "look at its parent's run",
        ) from error


def _placed(own: Policy, wish: Wish) -> Wish:
    """A denial that no rule of the policy made, though it stands there (an upstream's key that is
    missing): no rule can help."""
    if wish.layer != "policy" or wish.looked:
        return wish
    try:
        named = [resources.parse_text(text) for text in (wish.resource, wish.target) if text]
    except ResourceError:
        return wish
    if all(own.judge(wish.effect, each, wish.verb).allowed for each in named):
        return msgspec.structs.replace(wish, layer="effect")
    return wish


def silent(directory: StateDir, run: str) -> list[str]:
    """What may have been refused to a run that ended badly without an entry of its own."""
    said: list[str] = []
    for entry in query.read(directory.log, query.Filter(runs=frozenset({run}))):
        if entry["kind"] == "run.start":
            said = [
                "a program that it starts has to stand in [process] exec: others are not there, and "
                "where none stands the kernel says 'Function not implemented'",
                "127.0.0.1 is the run's own: docs/guide.md says how this machine's servers are reached",
            ]
        elif entry["kind"] == "run.end":
            return said if entry.get("code") not in (0, None) else []
    return []


def _history(directory: StateDir, run: str) -> tuple[dict[str, Any], list[Wish]]:
    """A run's first entry, and everything that was refused to it."""
    start: dict[str, Any] | None = None
    admitted: dict[int, dict[str, Any]] = {}
    wishes = []
    for entry in query.read(directory.log):
        if entry.get("run") != run:
            continue
        kind = entry["kind"]
        if kind == "run.start":
            start = entry
        elif kind == "admit" and not entry.get("final"):
            admitted[entry["seq"]] = entry
        elif kind == "outcome":
            asked = admitted.pop(entry["of"], None)
            if asked and entry["status"] == "aborted" and entry.get("code") == "E_POLICY_DENY":
                reason = (entry.get("result") or {}).get("text", "")
                wishes.append(_wish(asked, entry["seq"], "effect", reason))
        elif kind == "denied" and entry["layer"] not in _SILENT and entry.get("effect"):
            waits = entry["code"] == "E_APPROVAL_REQUIRED"
            layer = "approval" if waits else entry["layer"]
            wishes.append(_wish(entry, entry["seq"], layer, entry["reason"]))
    if start is None:
        raise AuthorityError(
            f"no run {printable(run, 64)} stands in the log",
            "'authority audit query --kind run.start' lists them",
        )
    return start, wishes


def _wish(entry: Mapping[str, Any], seq: int, layer: str, reason: str) -> Wish:
    return Wish(
        effect=entry["effect"],
        resource=entry["resource"],
        verb=entry.get("verb", ""),
        target=entry.get("target", ""),
        layer=layer,
        reason=reason,
        rule=entry.get("rule", ""),
        entry=seq,
    )


def _looked(seen: Sequence[Any]) -> Wish | None:
    """A look of which the gate told: [effect, resource, times]."""
    effect, text, times = str(seen[0]), str(seen[1]), int(seen[2])
    there, folder = True, False
    try:
        resource = resources.parse_text(text)
        if resource.scheme == "fs":
            there, folder = os.path.lexists(resource.path), os.path.isdir(resource.path)
    except (ResourceError, ValueError, OSError):
        return None
    return Wish(effect, text, times=times, looked=True, there=there, folder=folder)


def _target(target: Path, policy: str) -> Path:
    """The file to write, which has to lie beside the policy and be of its kind."""
    folder, format_ = os.path.dirname(policy), policyfile.format_of(policy)
    if os.path.realpath(target.absolute().parent) != folder:
        raise AuthorityError(
            f"{printable(str(target))} does not lie beside the policy",
            f"paths in it are relative to it: name a file in {printable(folder)}",
        )
    if policyfile.format_of(str(target)) != format_:
        raise AuthorityError(f"the policy is {format_}, and the new file's name says otherwise")
    return target


def lines(
    run: str,
    found: Suggestion,
    written: str = "",
    tools: Sequence[dict[str, Any]] = (),
    unsaid: Sequence[str] = (),
) -> list[str]:
    """For people: TOML, with what is left as comments below it."""
    out = [
        f"# run {printable(run, 64)}: what would have let its denials pass; read before you use it"
    ]
    text = toml(found)
    if text:
        out += ["", *text.rstrip("\n").split("\n")]
    else:
        out.append("# nothing: no denial that a rule could allow")
    out += suggest_tools.lines(tools)
    if found.warnings:
        out += ["", *(f"# note: {_line(line)}" for line in found.warnings)]
    told = [one for one in found.left if not (one.wish.looked and not one.wish.there)]
    gone = len(found.left) - len(told)
    if told or gone:
        out.append("")
    if told:
        out.append("# not suggested:")
        out += [f"#   {one.wish.because}" + f"\n#     {_line(one.why)}" for one in told[:MOST_LEFT]]
        if len(told) > MOST_LEFT:
            out.append(f"#   and {len(told) - MOST_LEFT} more")
    if gone:
        out.append(
            f"# {gone} names were looked for that are not there: a rule would change nothing"
        )
    if unsaid:
        out += ["", "# it ended badly, and what may be behind that leaves no denial:"]
        out += [f"#   {line}" for line in unsaid]
    if written:
        out += ["", f"# wrote {_line(written)}"]
    return out


def _line(text: str) -> str:
    return re.sub(r"\s+", " ", printable(text, 2000))


def plain(
    run: str,
    found: Suggestion,
    written: str = "",
    tools: Sequence[dict[str, Any]] = (),
    unsaid: Sequence[str] = (),
) -> dict[str, Any]:
    """As JSON."""
    return {
        "run": run,
        "additions": [
            {
                "section": each.section,
                "key": each.key,
                "rule": each.rule,
                "because": list(each.because),
                "warnings": list(each.warnings),
            }
            for each in found.additions
        ],
        "left": [
            {
                "effect": one.wish.effect,
                "resource": one.wish.resource,
                "verb": one.wish.verb,
                "entry": one.wish.entry,
                "times": one.wish.times,
                "looked": one.wish.looked,
                "why": one.why,
            }
            for one in found.left
        ],
        "warnings": list(found.warnings),
        "toml": toml(found),
        "written": written,
        "tools": list(tools),
        "unsaid": list(unsaid),
    }
