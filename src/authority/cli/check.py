"""`authority check`: what a policy says of a request, and what in it looks too broad.

Nothing is started and no gate is asked. Capabilities, budgets and labels are not judged here: they
depend on the run.

Rules
- A request is an effect and a resource. Without an effect, what is named says which are meant: a URL
  the request (`--verb`, or written before it, as rules have it), host and port the tunnel, anything
  else a file, to be read and written.
- The exit code is 0 only when everything that was asked is allowed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from authority.cli.common import parser, print_json
from authority.cli.usage import Usage
from authority.gate import policyfile
from authority.kernel import resources
from authority.kernel.canonical import printable
from authority.kernel.policy import Policy
from authority.kernel.policy_explain import check_warnings, explain
from authority.kernel.requests import EFFECTS

_SCHEMES = {
    "http": ("http.request",),
    "https": ("http.request",),
    "tcp": ("net.connect",),
    "dns": ("net.resolve",),
    "tool": ("tool.call",),
    "agent": ("agent.spawn",),
    "model": ("model.chat",),
    "fs": ("fs.read", "fs.write"),
}
_TUNNEL = re.compile(r"[A-Za-z0-9.-]+:[0-9]{1,5}\Z")
_VERBED = re.compile(r"([A-Za-z]+) +(https?://.*)\Z", re.DOTALL)


def main(arguments: Sequence[str]) -> int:
    made = parser("check", "Judge a request by a policy, without running anything.")
    made.add_argument(
        "--policy", type=Path, required=True, metavar="FILE", help="the policy (TOML or JSON)"
    )
    made.add_argument("effect", nargs="?", help="such as fs.read or http.request; may be left out")
    made.add_argument("resource", nargs="?", help="a path, a URL, host:port, tool:NAME")
    made.add_argument(
        "--verb", default="GET", help="the HTTP method, unless the URL says it (default: GET)"
    )
    options = made.parse_args(arguments)
    policy = policyfile.read(options.policy).policy
    warnings = check_warnings(policy)
    if options.effect is None:
        found = {"digest": policy.digest, "warnings": warnings}
        if options.json:
            print_json(found)
        else:
            print(f"the policy is well-formed: {policy.digest}")
            for line in warnings:
                print(f"  note: {printable(line)}")
        return 0
    answers = [
        answer(policy, effect, resource, (verb or options.verb).upper())
        for effect, verb, resource in asked(options.effect, options.resource)
    ]
    if options.json:
        first = {**answers[0], "warnings": warnings}
        print_json(first if len(answers) == 1 else {"requests": answers, "warnings": warnings})
    else:
        for each in answers:
            _show(each)
    return 0 if all(each["allowed"] for each in answers) else 1


def asked(effect: str, resource: str | None) -> list[tuple[str, str, str]]:
    """The requests that are meant: effect, method where one was written, resource.

    Raises `AuthorityError`.
    """
    if effect in EFFECTS and resource is not None:
        return [(effect, *split_verb(resource))]
    if effect in EFFECTS:
        raise Usage(f"name the resource of {effect}", "a path, a URL, host:port, tool:NAME")
    if resource is not None:
        near = get_close_matches(effect, EFFECTS, 1)
        raise Usage(
            f"{printable(effect, 60)} is no effect"
            + (f"; did you mean {near[0]}?" if near else ""),
            f"effects: {', '.join(sorted(EFFECTS))}",
        )
    if _TUNNEL.match(effect):
        return [("net.connect", "", effect)]
    verb, text = split_verb(effect)
    effects = _SCHEMES.get(text.partition(":")[0], _SCHEMES["fs"])
    return [(each, verb, text) for each in effects]


def split_verb(text: str) -> tuple[str, str]:
    """`GET https://host/` as the method and the URL; without a method, '' and the text."""
    found = _VERBED.match(text)
    return (found[1], found[2]) if found else ("", text)


def answer(policy: Policy, effect: str, text: str, verb: str) -> dict[str, Any]:
    """What the policy says of one request. Raises `ResourceError`."""
    verb = verb if effect == "http.request" else ""
    resource = resources.parse(effect, text, cwd=os.path.realpath(os.getcwd()))
    judgement = policy.judge(effect, resource, verb)
    found = {
        "effect": effect,
        "verb": verb,
        "resource": resource.text,
        "allowed": judgement.allowed,
        "rule": judgement.rule,
        "reason": judgement.reason,
        "approval": policy.approval(effect, resource, verb) if judgement.allowed else "",
        "missing": "",
        "snippet": "",
    }
    if not judgement.allowed:
        told = explain(policy, effect, resource, verb, judgement)
        found["missing"], found["snippet"] = told.missing, told.snippet
    return found


def _show(found: dict[str, Any]) -> None:
    said = "allowed" if found["allowed"] else "denied"
    if found["approval"]:
        said = "allowed when a person approves"
    what = " ".join(part for part in (found["effect"], found["verb"], found["resource"]) if part)
    print(f"{said}: {printable(what, 8192)}")
    why = found["rule"] if found["allowed"] else found["reason"]
    print(f"  {printable(why or found['reason'])}")
    if found["snippet"]:
        print("  this would allow it:")
        for line in str(found["snippet"]).rstrip().split("\n"):
            print(f"    {printable(line)}")
