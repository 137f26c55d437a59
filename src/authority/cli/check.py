"""`authority check`: what a policy says of a request, and what in it looks too broad.

Nothing is started and no gate is asked. Capabilities, budgets and labels are not judged here: they
depend on the run.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from authority.cli.common import parser, print_json
from authority.errors import AuthorityError
from authority.gate import policyfile
from authority.kernel import resources
from authority.kernel.canonical import printable
from authority.kernel.policy_explain import check_warnings, explain
from authority.kernel.requests import EFFECTS


def main(arguments: Sequence[str]) -> int:
    made = parser("check", "Judge a request by a policy, without running anything.")
    made.add_argument("--policy", type=Path, required=True, metavar="FILE")
    made.add_argument("effect", nargs="?", help="such as fs.read or http.request")
    made.add_argument("resource", nargs="?", help="a path, a URL, tool:NAME")
    made.add_argument("--verb", default="GET", help="the HTTP method (default: GET)")
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
    if options.effect not in EFFECTS or options.resource is None:
        raise AuthorityError(
            "name an effect and a resource", f"effects: {', '.join(sorted(EFFECTS))}"
        )
    verb = options.verb.upper() if options.effect == "http.request" else ""
    resource = resources.parse(options.effect, options.resource, cwd=os.path.realpath(os.getcwd()))
    judgement = policy.judge(options.effect, resource, verb)
    approval = policy.approval(options.effect, resource, verb) if judgement.allowed else ""
    answer = {
        "resource": resource.text,
        "allowed": judgement.allowed,
        "rule": judgement.rule,
        "reason": judgement.reason,
        "approval": approval,
        "missing": "",
        "snippet": "",
        "warnings": warnings,
    }
    if not judgement.allowed:
        told = explain(policy, options.effect, resource, verb, judgement)
        answer["missing"], answer["snippet"] = told.missing, told.snippet
    if options.json:
        print_json(answer)
    else:
        said = "allowed" if judgement.allowed else "denied"
        if approval:
            said = "allowed when a person approves"
        print(f"{said}: {options.effect} {verb} {resource.text}".replace("  ", " "))
        print(f"  {printable(judgement.rule or judgement.reason)}")
        if answer["snippet"]:
            print("  this would allow it:")
            for line in str(answer["snippet"]).rstrip().split("\n"):
                print(f"    {printable(line)}")
    return 0 if judgement.allowed else 1
