"""`authority why ENTRY`: which rule said no, what is missing, and the snippet that would allow it."""

from __future__ import annotations

import argparse
import contextlib
import glob
import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from authority.audit import query
from authority.audit.lineage import body_of
from authority.audit.store import ContentStore
from authority.cli import why_labels
from authority.cli.check import split_verb
from authority.cli.common import parser, print_json, state_of, when
from authority.cli.lineage import lineage, tree
from authority.errors import AuthorityError
from authority.gate.statedir import StateDir
from authority.kernel import resources
from authority.kernel.canonical import printable
from authority.kernel.policy import Policy, from_canonical
from authority.kernel.policy_explain import explain
from authority.kernel.resources import ResourceError

_ADVICE = {
    "E_CAP_MISSING": "present the run's capability (AUTHORITY_CAPABILITY) with the request",
    "E_CAP_INVALID": "use a capability that this gate minted for this run",
    "E_CAP_EXPIRED": "mint a capability that is valid now: 'authority token mint'",
    "E_CAP_REVOKED": "mint a new capability if the revocation was not meant: 'authority token mint'",
    "E_CAP_SCOPE": "use a capability whose restrictions cover this; they can't be taken off",
    "E_CAP_RATE": "wait, or mint a capability with a higher rate, count or quota",
    "E_REPLAY": "number the requests of a stream upwards, each number once",
    "E_SCHEMA_INVALID": "send the arguments that docs/protocol.md lists for this effect",
    "E_FRAME_TOO_LARGE": "send smaller frames; the welcome says how large they may be",
    "E_HALTED": "start a new run; after a general halt 'authority resume --reason ...' comes first",
}


def main(arguments: Sequence[str]) -> int:
    made = parser("why", "Explain a denial.")
    made.add_argument(
        "entry",
        type=_entry,
        nargs="?",
        help="its number, or what it asked for: a path, a URL, tool:pay, or a pattern with stars: the "
        "last such denial (default: the last denial)",
    )
    made.add_argument(
        "--lineage", action="store_true", help="where the words of its arguments came from"
    )
    options = made.parse_args(arguments)
    directory = state_of(options)
    asked = options.entry
    seq = asked if isinstance(asked, int) else _last(directory, asked or "*")
    found: dict[str, Any]
    if options.lineage:
        steps = lineage(directory, seq)
        found = {"seq": seq, "steps": [msgspec.to_builtins(step) for step in steps]}
    else:
        found = explanation(directory, seq)
    if options.json:
        print_json(found)
    elif options.lineage:
        entry, _ = query.find(directory.log, seq)
        print(_heading(entry))
        print("\n".join(f"  {line}" for line in tree(steps, given(directory, entry))))
    else:
        _show(found)
    return 0


def _entry(text: str) -> int | str:
    """A number, or what can't be taken for one: a resource has a colon, a path a slash or a file."""
    if text.isdecimal():
        return int(text)
    if "*" in text:
        return text
    url = split_verb(text)[1]
    if url.startswith(("http://", "https://")):
        return _canonical("http.request", url)
    if ":" in text and not text.startswith(("/", "./", "../")):
        return glob.escape(text)
    if "/" in text or os.path.lexists(text):
        return _canonical("fs.read", text)
    raise argparse.ArgumentTypeError("a number, a path, or a resource such as tool:pay")


def _canonical(effect: str, text: str) -> str:
    """How the log writes it, as a pattern for exactly that; what has no such form stays."""
    with contextlib.suppress(ResourceError):
        text = resources.parse(effect, text, cwd=os.path.realpath(os.getcwd())).text
    return glob.escape(text)


def _last(directory: StateDir, pattern: str) -> int:
    """The last denial of a resource. Raises `AuthorityError` when there is none."""
    last = -1
    for entry in query.read(directory.log):
        if entry["kind"] == "denied" and fnmatchcase(entry.get("resource", ""), pattern):
            last = entry["seq"]
    if last < 0:
        what = "nothing" if pattern == "*" else f"nothing like {printable(pattern, 100)}"
        raise AuthorityError(f"{what} was denied yet", "'authority audit show' shows what happened")
    return last


def _heading(entry: dict[str, Any]) -> str:
    what = " ".join(printable(entry.get(k, ""), 200) for k in ("effect", "verb", "resource"))
    return f"entry {entry['seq']}: {' '.join(what.split())}  {entry.get('code', 'admitted')}"


def given(directory: StateDir, entry: dict[str, Any]) -> Any:
    """A request's arguments as they would be sent; None where they are not kept."""
    data = sent_with(directory, entry)
    try:
        return msgspec.json.decode(data) if data else None
    except msgspec.DecodeError:
        return None


def sent_with(directory: StateDir, entry: dict[str, Any]) -> bytes | None:
    """The same in the bytes that would be sent."""
    sealed = directory.keys / "sealed"
    store = ContentStore(directory.store, keys=sealed if sealed.is_dir() else None)
    return body_of(store, entry.get("filled") or entry.get("arguments"))


def explanation(directory: StateDir, seq: int) -> dict[str, Any]:
    """Everything about one denial. Raises `AuthorityError` for an entry that is none."""
    entry, _ = query.find(directory.log, seq)
    if entry["kind"] == "outcome" and entry["status"] != "done":
        return _not_done(directory, entry)
    if entry["kind"] != "denied":
        raise AuthorityError(
            f"entry {seq} is no denial: it is of kind {entry['kind']}",
            "'authority audit query --kind denied' lists them",
        )
    missing, snippet = "", ""
    ways: list[dict[str, str]] = []
    policy = _policy(directory, entry.get("run", ""), seq)
    if policy is not None and entry["layer"] == "policy" and entry["code"] == "E_POLICY_DENY":
        missing, snippet = _explain(policy, entry)
    elif entry["layer"] == "budget" and entry.get("rule", "").startswith("models"):
        missing, snippet = _model(entry)
    elif entry["layer"] == "budget":
        name = entry.get("rule", "").removeprefix("budgets.")
        missing = f"a larger budget {name}"
        snippet = f"[budgets]\n{name} = ...   # more than it is now\n"
    elif entry["code"] == "E_APPROVAL_REQUIRED" and entry.get("facts", {}).get("definition"):
        missing = "a person's approval of what the server says that the tool is"
        snippet = "authority approvals   # then: authority approvals approve ID\n"
    elif entry["code"] == "E_APPROVAL_REQUIRED":
        missing = "a person's approval, while the run goes on"
        snippet = f"authority approvals approve {seq}   # {entry.get('approval', '')}\n"
    elif entry["layer"] == "labels":
        names = _names(given(directory, entry))
        missing = why_labels.missing(entry, policy, names)
        ways = why_labels.ways(entry, policy, names)
        snippet = next((way["how"] for way in reversed(ways) if way["how"].startswith("[")), "")
    return {
        "seq": seq,
        "time": entry["time"],
        "run": entry.get("run", ""),
        "code": entry["code"],
        "layer": entry["layer"],
        "effect": entry.get("effect", ""),
        "resource": entry.get("resource", ""),
        "verb": entry.get("verb", ""),
        "reason": entry["reason"],
        "rule": entry.get("rule", ""),
        "missing": missing or _ADVICE.get(entry["code"], ""),
        "snippet": snippet,
        "ways": ways,
    }


def _not_done(directory: StateDir, entry: dict[str, Any]) -> dict[str, Any]:
    asked, _ = query.find(directory.log, entry["of"])
    return {
        "seq": entry["seq"],
        "time": entry["time"],
        "run": entry.get("run", ""),
        "code": entry.get("code", ""),
        "layer": "effect",
        "effect": asked.get("effect", ""),
        "resource": asked.get("resource", ""),
        "verb": asked.get("verb", ""),
        "reason": (entry.get("result") or {}).get("text", entry["status"]),
        "rule": asked.get("rule", ""),
        "missing": f"it was allowed in entry {entry['of']}, and {entry['status']}",
        "snippet": "",
        "ways": [],
    }


def _names(arguments: Any) -> list[str]:
    inner = arguments.get("arguments") if isinstance(arguments, dict) else None
    return list(inner) if isinstance(inner, dict) else []


def _policy(directory: StateDir, run: str, before: int) -> Policy | None:
    """The policy that a run had, from the content store; None when there was no run."""
    digest = ""
    for entry in query.read(directory.log):
        if entry["seq"] >= before:
            break
        if entry["kind"] == "run.start" and entry["run"] == run:
            digest = entry["policy"]
    if not digest:
        return None
    return from_canonical(ContentStore(directory.store).get(digest))


def _explain(policy: Policy, entry: dict[str, Any]) -> tuple[str, str]:
    effect, verb = entry["effect"], entry.get("verb", "")
    for text in (entry["resource"], entry.get("target", "")):
        if not text:
            continue
        try:
            resource = resources.parse_text(text)
        except ResourceError:
            return "a resource that has a canonical form", ""
        judgement = policy.judge(effect, resource, verb)
        if not judgement.allowed:
            found = explain(policy, effect, resource, verb, judgement)
            return found.missing, found.snippet
    return "", ""


def _model(entry: dict[str, Any]) -> tuple[str, str]:
    """What a model call lacked: a bound or a price, which only a person knows."""
    key = entry["rule"].removeprefix("models").removeprefix(".price.")
    if key == ".usage":
        return "trust in what the vendor reports: see the incident; another run may ask again", ""
    if not key:
        return "a bound that no price list has; [models] extras takes it on your word", ""
    model = entry["resource"].removeprefix("model:")
    table = f'[models.price."{model}"]   # with its input and output\n'
    return f"{key} in the price of the model", f"{table}{key} = ...\n"


def _show(found: dict[str, Any]) -> None:
    what = " ".join(printable(found[k]) for k in ("effect", "verb", "resource") if found[k])
    print(f"entry {found['seq']}, {when(found['time'])}, run {found['run'] or '-'}")
    print(f"  asked    {what or '-'}")
    print(f"  answer   {found['code']} by the layer '{found['layer']}'")
    print(f"  because  {printable(found['reason'])}")
    if found["rule"]:
        print(f"  rule     {printable(found['rule'])}")
    if found["missing"] and found["missing"] != found["reason"]:
        print(f"  missing  {printable(found['missing'])}")
    for number, way in enumerate(found["ways"], 1):
        print(f"  {number}. {printable(way['what'])}")
        for line in way["how"].split("\n"):
            print(f"       {printable(line)}")
    if found["snippet"] and not found["ways"]:
        print("  this would allow it:")
        for line in found["snippet"].rstrip().split("\n"):
            print(f"    {printable(line)}")
