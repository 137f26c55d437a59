"""`authority policy`: what holds of all requests that a policy can be asked about.

Exit codes: 0 proved (or nothing found), 1 disproved (or something found), 125 not decided or refused.
A policy is a file, or the digest of one that a run started under (then the state's store has it).
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

from authority import __version__
from authority.audit import query
from authority.audit.errors import BodyMissing
from authority.audit.store import ContentStore
from authority.cli.common import add_common, print_json, state_of, table
from authority.cli.usage import Parser, Usage, whole
from authority.errors import AuthorityError
from authority.gate import policyfile
from authority.gate.client import client
from authority.kernel import canonical
from authority.kernel.canonical import printable
from authority.kernel.policy import Policy, from_canonical
from authority.kernel.policy_change import widened
from authority.proof import certificate as certificates
from authority.proof import statements
from authority.proof.certificate import Certificate, CertificateError
from authority.proof.dead import dead_rules

_DIGEST = re.compile(r"[0-9a-f]{64}")
_PROVE = """Decide statements about all requests that a policy can be asked about: in FILE, one a line,
or given with --statement. A request that shows a statement wrong is named."""
_FORMS = (
    "statements:\n"
    + "\n".join(f"  {form}" for form in statements.FORMS)
    + """

  EFFECT is a name (http.request), a family (http.*) or *; PATTERN as in a policy. For example
    never 'http.request' to '*.internal'
    every 'http.request' to 'https://pay.example/**' needs an approval
    at most 50 tool_calls

exit code: 0 all are proved, 1 one is not. docs/proof.md says what each means."""
)


def main(arguments: Sequence[str]) -> int:
    made = Parser(
        prog="authority policy",
        description="Decide what a policy allows, for all requests at once.",
    )
    parts = made.add_subparsers(dest="what", required=True, metavar="prove|diff|dead|recheck")
    one = parts.add_parser(
        "prove", help="decide statements about all requests", description=_PROVE,
        formatter_class=argparse.RawDescriptionHelpFormatter, epilog=_FORMS,
    )  # fmt: skip
    one.add_argument("file", nargs="?", type=Path, metavar="FILE", help="statements, one a line")
    one.add_argument(
        "--policy",
        required=True,
        metavar="POLICY",
        help="a file, or the digest of one that a run had",
    )
    one.add_argument(
        "--statement",
        action="append",
        default=[],
        metavar="TEXT",
        help="one of the forms below; may be repeated",
    )
    _recorded(one)
    one = parts.add_parser("diff", help="what NEW allows and OLD does not")
    one.add_argument("old", metavar="OLD", help="a file, or the digest of one that a run had")
    one.add_argument("new", metavar="NEW", help="the same")
    one.add_argument("--prove", action="store_true", help="decide it for all requests")
    one.add_argument(
        "--except", dest="exceptions", action="append", default=[], metavar="TEXT",
        help="'EFFECT' [to 'PATTERN'] that may become wider",
    )  # fmt: skip
    _recorded(one)
    one = parts.add_parser("dead", help="rules that do nothing")
    one.add_argument("policy", metavar="POLICY", help="a file, or a digest")
    one = parts.add_parser("recheck", help="check a certificate again")
    one.add_argument(
        "certificate", nargs="?", type=Path, metavar="FILE", help="as --certificate wrote it"
    )
    one.add_argument("--entry", type=whole, help="the certificate of this entry of the log")
    one.add_argument(
        "--policy", action="append", default=[], metavar="POLICY",
        help="it has to be about this policy (old before new)",
    )  # fmt: skip
    for part in parts.choices.values():
        add_common(part)
    options = made.parse_args(arguments)
    return _WHAT[options.what](options)


def _recorded(one: argparse.ArgumentParser) -> None:
    one.add_argument("--certificate", type=Path, metavar="OUT", help="write the certificate")
    one.add_argument("--record", action="store_true", help="let the gate check and record it")


def _policy(text: str, options: argparse.Namespace) -> Policy:
    if _DIGEST.fullmatch(text) and not os.path.exists(text):
        try:
            return from_canonical(ContentStore(state_of(options).store).get(text))
        except BodyMissing as error:
            raise AuthorityError(
                f"no policy {text} is in the content store", "name a file, or a run's policy digest"
            ) from error
    return policyfile.read(Path(text)).policy


def _prove(options: argparse.Namespace) -> int:
    texts = list(options.statement)
    base = os.path.realpath(os.getcwd())
    for text in texts:
        statements.parse(text, base=base)
    if options.file is not None:
        base = os.path.dirname(os.path.realpath(options.file))
        text = options.file.read_text("utf-8", errors="strict")
        texts += [each.text for each in statements.read(text, base=base)]
    if not texts:
        raise Usage("there is nothing to prove", "name a file of statements, or give --statement")
    policy = _policy(options.policy, options)
    found = certificates.prove(policy, texts, base=base, version=__version__)
    return _end(options, found)


def _diff(options: argparse.Namespace) -> int:
    old, new = _policy(options.old, options), _policy(options.new, options)
    if options.prove:
        base = os.path.realpath(os.getcwd())
        exceptions = options.exceptions
        return _end(
            options, certificates.compare(old, new, exceptions, base=base, version=__version__)
        )
    if options.exceptions or options.record or options.certificate:
        raise Usage("--except, --record and --certificate go with --prove")
    trees = [canonical.decode(each.canonical)["tree"] for each in (old, new)]
    lines = widened(*trees)
    if options.json:
        print_json({"old": old.digest, "new": new.digest, "wider": lines})
    else:
        for line in lines:
            print(printable(line))
        if not lines:
            print("nothing is wider; --prove decides it for all requests")
    return 1 if lines else 0


def _dead(options: argparse.Namespace) -> int:
    found = list(dead_rules(_policy(options.policy, options)))
    if options.json:
        print_json(
            [{"file": d.file, "rule": d.rule, "state": d.state, "why": d.why} for d in found]
        )
    elif found:
        table(
            "", ("state", "rule", "file", "why"),
            [(d.state, printable(d.rule), printable(d.file), printable(d.why)) for d in found],
        )  # fmt: skip
    else:
        print("every rule does something")
    if any(d.state == "undecided" for d in found):
        return 125
    return 1 if found else 0


def _recheck(options: argparse.Namespace) -> int:
    if (options.certificate is None) == (options.entry is None):
        raise Usage("name a certificate, or an entry with --entry")
    if options.entry is None:
        data = options.certificate.read_bytes()
    else:
        directory = state_of(options)
        entry, _ = query.find(directory.log, options.entry)
        if entry["kind"] != "proof":
            raise AuthorityError(
                f"entry {options.entry} is no proof: it is of kind {entry['kind']}",
                "'authority audit query --kind proof' lists them",
            )
        data = ContentStore(directory.store).get(entry["certificate"])
    found = certificates.decode(data)
    wanted = [_policy(each, options).digest for each in options.policy]
    if wanted and wanted != [each.digest for each in found.policies]:
        raise CertificateError("the certificate is about other policies than the ones named")
    certificates.recheck(found)
    if options.json:
        print_json({**_plain(found), "rechecked": True})
    else:
        print(f"the certificate checks out: {found.digest}")
        _say(found)
    return 0 if found.proved else 1


def _end(options: argparse.Namespace, found: Certificate) -> int:
    if options.certificate is not None:
        with open(options.certificate, "xb") as out:
            out.write(found.encode() + b"\n")
    seq = None
    if options.record:
        body = {"certificate": found.encode().decode("ascii")}
        seq = client(state_of(options)).call("POST", "/v1/proofs", body)["seq"]
    if options.json:
        print_json({**_plain(found), **({} if seq is None else {"seq": seq})})
    else:
        _say(found)
        if seq is not None:
            print(f"recorded in entry {seq}, certificate {found.digest}")
    return 0 if found.proved else 1


def _say(found: Certificate) -> None:
    for claim in found.claims:
        print(f"{'proved' if claim.proved else 'DISPROVED'}: {printable(claim.statement)}")
        for text in claim.exceptions:
            print(f"  but for {printable(text)}")
        for witness in claim.witnesses:
            print(f"  {certificates.witness_text(witness)}")


def _plain(found: Certificate) -> dict[str, object]:
    return {
        "proved": found.proved,
        "engine": found.engine,
        "certificate": found.digest,
        "policies": [{"name": each.name, "digest": each.digest} for each in found.policies],
        "claims": [
            {
                "statement": claim.statement,
                "exceptions": list(claim.exceptions),
                "proved": claim.proved,
                "witnesses": [
                    {"effect": w.effect, "resource": w.resource, "verb": w.verb, "why": w.why}
                    for w in claim.witnesses
                ],
            }
            for claim in found.claims
        ],
    }


_WHAT = {"prove": _prove, "diff": _diff, "dead": _dead, "recheck": _recheck}
