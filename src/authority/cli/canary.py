"""`authority canary`: plant files, hosts and credentials that nothing legitimate touches."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from authority.cli.common import add_common, print_json, state_of, table
from authority.cli.usage import Parser
from authority.errors import AuthorityError
from authority.gate.canaries import made as new_credential
from authority.gate.client import client
from authority.kernel.canonical import printable

_CONTENT = "# keys of the payment service, do not share\naws_access_key_id = {}\n"


def main(arguments: Sequence[str]) -> int:
    made = Parser(
        prog="authority canary",
        description="Traps: whatever touches one is refused, halted, and an incident is opened.",
    )
    parts = made.add_subparsers(dest="what", required=True, metavar="plant|remove|list")
    one = parts.add_parser(
        "plant", help="plant one",
        usage="authority canary plant NAME (--file FILE | --host HOST | --credential [VALUE])",
    )  # fmt: skip
    kind = one.add_mutually_exclusive_group(required=True)
    kind.add_argument("--file", type=Path, help="a file; it is made when it is not there")
    kind.add_argument("--host", help="a host name that nothing of yours is called")
    kind.add_argument(
        "--credential", nargs="?", const="", metavar="VALUE",
        help="a value that looks like a credential; without VALUE one is made and printed",
    )  # fmt: skip
    one.add_argument("name", help="what you call it")
    add_common(one)
    one = parts.add_parser("remove", help="remove one (a planted file stays)")
    one.add_argument("name", help="what you call it")
    add_common(one)
    one = parts.add_parser("list", help="which are planted")
    add_common(one)
    options = made.parse_args(arguments)
    return {"plant": _plant, "remove": _remove, "list": _list}[options.what](options)


def _plant(options: argparse.Namespace) -> int:
    body = {"action": "plant", "name": options.name}
    if options.file is not None:
        path = os.path.abspath(options.file)
        if not os.path.lexists(path):
            with open(path, "x", encoding="ascii") as file:
                file.write(_CONTENT.format(new_credential()))
        body |= {"what": "file", "where": path}
    elif options.host is not None:
        body |= {"what": "host", "where": options.host}
    else:
        body |= {"what": "credential", "where": options.credential or new_credential()}
    found = client(state_of(options)).call("POST", "/v1/canaries", body)
    shown = {"name": found["name"], "what": body["what"], "seq": found["seq"]}
    if body["what"] == "credential":
        shown["value"] = body["where"]
    if options.json:
        print_json(shown)
    else:
        print(f"planted {body['what']} {printable(found['name'])}: entry {found['seq']}")
        if "value" in shown:
            print(f"  lay it where it may be found: {printable(str(shown['value']))}")
    return 0


def _remove(options: argparse.Namespace) -> int:
    body = {"action": "remove", "name": options.name}
    found = client(state_of(options)).call("POST", "/v1/canaries", body)
    if options.json:
        print_json(found)
    else:
        print(f"removed {printable(found['name'])}: entry {found['seq']}")
    return 0


def _list(options: argparse.Namespace) -> int:
    planted = client(state_of(options)).call("GET", "/v1/incidents", {})["canaries"]
    if not isinstance(planted, dict):
        raise AuthorityError("the gate's answer can't be read")
    if options.json:
        print_json(planted)
    elif not planted:
        print("none is planted; 'authority canary plant --help' says how")
    else:
        table("", ("name", "where"), [(printable(k), printable(v)) for k, v in planted.items()])
    return 0
