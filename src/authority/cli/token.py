"""`authority token`: mint, attenuate, inspect and revoke capabilities.

Attenuating and inspecting need no gate: whoever holds a token can narrow it, and see what it allows.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Sequence
from typing import Any

from authority import tokens
from authority.cli.common import add_common, print_json, state_of, when
from authority.cli.usage import Parser, whole
from authority.errors import AuthorityError
from authority.gate.client import client
from authority.kernel import capabilities
from authority.kernel.policy_values import duration
from authority.kernel.printing import printable


def main(arguments: Sequence[str]) -> int:
    made = Parser(
        prog="authority token", description="Capabilities: what a run, or a part of it, may do."
    )
    parts = made.add_subparsers(dest="what", required=True, metavar="mint|attenuate|inspect|revoke")
    one = parts.add_parser("mint", help="a capability for a running run")
    one.add_argument("run", help="its id, as 'authority gate status' lists them")
    _restrictions(one)
    one = parts.add_parser("attenuate", help="a narrower token from one that you hold")
    one.add_argument("token", help="auth1_..., or - for standard input")
    _restrictions(one)
    one = parts.add_parser("inspect", help="what a token says (not whether it is genuine)")
    one.add_argument("token", help="auth1_..., or - for standard input")
    one = parts.add_parser("revoke", help="kill a capability and all that was made from it")
    one.add_argument("token", help="auth1_..., an id, or - for standard input")
    one.add_argument("--reason", default="", help="why; it is recorded")
    for part in parts.choices.values():
        add_common(part)
    options = made.parse_args(arguments)
    if getattr(options, "token", "") == "-":
        options.token = sys.stdin.readline().strip()
    return {"mint": _mint, "attenuate": _attenuate, "inspect": _inspect, "revoke": _revoke}[
        options.what
    ](options)


def _restrictions(made: argparse.ArgumentParser) -> None:
    made.add_argument("--resource", action="append", metavar="PATTERN",
                      help="absolute, such as fs:/data/** or 'GET https://host/**'")  # fmt: skip
    made.add_argument("--method", action="append", metavar="EFFECT", help="such as fs.read or fs.*")
    made.add_argument("--expires", metavar="IN", help="from now, such as 10m")
    made.add_argument("--count", type=whole, help="how many uses")
    made.add_argument("--rate", metavar="N/TIME", help="such as 10/1m")
    made.add_argument(
        "--quota",
        action="append",
        metavar="ARGUMENT=LIMIT",
        help="the sum of a whole-number argument over all uses; repeatable",
    )
    made.add_argument("--approval", action="store_true", help="a person approves each use")
    made.add_argument("--run-only", action="store_true", help="not for children of the run")


def _plain(options: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        if options.resource:
            found["resources"] = options.resource
        if options.method:
            found["methods"] = options.method
        if options.expires:
            from authority.gate.clock import wall

            found["expires"] = wall() + duration(options.expires)
        if options.count is not None:
            found["count"] = options.count
        if options.rate:
            count, _, per = options.rate.partition("/")
            found["rate"] = {"count": int(count), "per": duration(per), "burst": 1}
        if options.quota:
            pairs = [q.partition("=") for q in options.quota]
            found["quotas"] = [{"argument": a, "limit": int(n)} for a, _, n in pairs]
    except ValueError as error:
        raise AuthorityError(
            f"a restriction can't be read: {error}", "see 'authority token mint --help'"
        ) from error
    if options.approval:
        found["approval"] = True
    if options.run_only:
        found["run_only"] = True
    return found


def _mint(options: argparse.Namespace) -> int:
    body = {"run": options.run, "restriction": _plain(options)}
    found = client(state_of(options)).call("POST", "/v1/tokens", body)
    print_json(found) if options.json else print(found["token"])
    return 0


def _attenuate(options: argparse.Namespace) -> int:
    narrowed = tokens.attenuate(
        tokens.from_text(options.token),
        tokens.restriction_from_plain(_plain(options)),
        nonce=secrets.token_bytes(16),
    )
    text = tokens.to_text(narrowed)
    print_json({"token": text, "id": capabilities.parse(narrowed).ids[-1]}) if options.json else (
        print(text)
    )
    return 0


def _inspect(options: argparse.Namespace) -> int:
    token = capabilities.parse(tokens.from_text(options.token))
    links = [(i, r.plain()) for i, r in zip(token.ids, token.restrictions, strict=True)]
    if options.json:
        shown_links = [{"id": i, "restriction": plain} for i, plain in links]
        print_json({"kid": token.kid, "run": token.run, "links": shown_links})
        return 0
    print(
        f"for run {printable(token.run)}, made with key {printable(token.kid)} "
        "(whether it is genuine, the gate knows)"
    )
    for depth, (name, plain) in enumerate(links):
        print(f"{'  ' * depth}{name}")
        for key, value in plain.items():
            shown = when(value) if key in {"expires", "not_before"} else _said(value)
            print(f"{'  ' * depth}  {key}: {shown}")
    return 0


def _said(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_said, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{printable(key)} {_said(each)}" for key, each in value.items())
    return printable(str(value))


def _revoke(options: argparse.Namespace) -> int:
    body = {"token": options.token, "reason": options.reason}
    found = client(state_of(options)).call("POST", "/v1/tokens/revoke", body)
    if options.json:
        print_json(found)
    else:
        print(f"revoked {found['id']} and all that was made from it (entry {found['seq']})")
        for seq in found["in_doubt"]:
            print(f"  entry {seq} was being performed and could not be stopped: in doubt")
    return 0
