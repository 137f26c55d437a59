"""`authority audit verify --proof`: what a stranger does with a proof or an export.

Rules
- It needs the file and the log's public key, and nothing else: no state directory, no gate, no log.
- The key comes from outside. A file that brought its own key would prove nothing, so without one
  nothing is checked.
- What does not hold ends with 1 and says why; a file that can't be read is an error like any other.
- What was proved is printed as it is stored: printable ASCII, whoever wrote it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from authority.audit import prove
from authority.cli.bundle import outside_key
from authority.cli.common import print_json
from authority.cli.usage import Usage
from authority.kernel.canonical import CanonicalError, decode, encode


def verify(options: argparse.Namespace) -> int:
    """Check one file; exit code 0 only when it proves what it says."""
    key = outside_key(options.key)
    if key is None:
        raise Usage(
            "a proof is checked with the log's public key, from outside: --key is missing",
            "whoever keeps the log has it as 'key' in 'authority audit verify --json'",
        )
    data = Path(options.proof).read_bytes()
    told: dict[str, Any] = {"ok": True, "problem": "", "key": key.to_text()}
    header = _header(data)
    try:
        if header.get("format") == prove.EXPORT:
            told["entries"] = prove.check_export(data, key)
            told |= {"first": header["first"], "last": header["last"]}
        else:
            entry = prove.check(_one(data), key)
            told |= {"entries": 1, "first": entry["seq"], "last": entry["seq"], "entry": entry}
    except prove.ProofInvalid as error:
        told |= {"ok": False, "problem": error.message}
    if options.json:
        print_json(told)
    elif not told["ok"]:
        print(f"NOT PROVED: {told['problem']}")
    elif "entry" in told:
        print(f"entry {told['first']} is in the log of {key.name}, and is this one:")
        print(encode(told["entry"]).decode("ascii"))
    else:
        print(f"entries {told['first']} to {told['last']} are in the log of {key.name}, whole and "
              "in this order")  # fmt: skip
    return 0 if told["ok"] else 1


def _header(data: bytes) -> dict[str, Any]:
    """An export has one for its first line. A proof is one object, however it is laid out."""
    try:
        found = decode(data.partition(b"\n")[0])
    except CanonicalError:
        return {}
    return found if isinstance(found, dict) else {}


def _one(data: bytes) -> bytes:
    """`audit prove` lays its object out for people."""
    try:
        return encode(json.loads(data))
    except (CanonicalError, ValueError, RecursionError) as error:
        raise prove.ProofInvalid("this is neither a proof nor an export") from error
