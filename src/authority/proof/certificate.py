"""A certificate: what was claimed of which policies, how it was decided, and how to check it again.

Rules
- A certificate holds the canonical policies themselves, so it can be checked without any file; their
  digests are compared with the bytes.
- `recheck` decides everything again and compares verdicts and witnesses, and asks the policy itself
  about each witness. A certificate of another engine, or a later one, is refused, not believed.
- Its own digest is the SHA-256 of its canonical form; that is what a log's entry names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from authority.errors import AuthorityError
from authority.kernel import canonical
from authority.kernel.canonical import CanonicalError
from authority.kernel.policy import Policy, PolicyError, from_canonical
from authority.proof import claims, statements, widening
from authority.proof.prover import Witness

FORMAT: Final = "authority/proof/1"
ENGINE: Final = "automata/1"
NO_WIDER: Final = "no wider than"
MAX_CERTIFICATE: Final = 16 * 1024 * 1024


class CertificateError(AuthorityError):
    """A certificate that is damaged, foreign, or says what is not so."""


class _Closed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class Named(_Closed, frozen=True):
    """A policy: `text` is its canonical form, of which `digest` is the SHA-256."""

    name: str
    digest: str
    text: str


class Claim(_Closed, frozen=True):
    """One statement and its verdict. `witnesses` are empty exactly when it is proved."""

    statement: str
    proved: bool
    witnesses: tuple[Witness, ...] = ()
    exceptions: tuple[str, ...] = ()


class Certificate(_Closed, frozen=True):
    """For `no wider than` the policies are the old and the new one, else the one."""

    format: str
    engine: str
    version: str
    base: str
    policies: tuple[Named, ...]
    claims: tuple[Claim, ...]

    @property
    def proved(self) -> bool:
        """Whether every claim is proved."""
        return all(claim.proved for claim in self.claims)

    def encode(self) -> bytes:
        """The canonical bytes."""
        return canonical.encode(self)

    @property
    def digest(self) -> str:
        return canonical.digest(self.encode())


def decode(data: bytes) -> Certificate:
    """A certificate from its JSON. Raises `CertificateError`."""
    if len(data) > MAX_CERTIFICATE:
        raise CertificateError("the certificate is larger than 16 MiB")
    try:
        canonical.decode(data)
        return msgspec.json.decode(data, type=Certificate)
    except (CanonicalError, msgspec.DecodeError) as error:
        raise CertificateError(f"this is no certificate: {error}") from None


def prove(policy: Policy, texts: Sequence[str], *, base: str, version: str) -> Certificate:
    """Decide statements about one policy. Raises `StatementError`, `Undecided`."""
    asked = [statements.parse(text, base=base) for text in texts]
    prover = claims.prover_for(policy, statements=tuple(asked))
    found = []
    for each in asked:
        witness = claims.refute(policy, each, prover)
        found.append(
            Claim(
                each.text, proved=witness is None, witnesses=() if witness is None else (witness,)
            )
        )
    return Certificate(FORMAT, ENGINE, version, base, (_named(policy),), tuple(found))


def compare(
    old: Policy, new: Policy, exceptions: Sequence[str] = (), *, base: str, version: str
) -> Certificate:
    """Decide whether NEW is no wider than OLD, the exceptions aside. Raises as `prove` does."""
    scopes = tuple(statements.scope(text, base=base) for text in exceptions)
    found = tuple(widening.widened(old, new, scopes))
    claim = Claim(NO_WIDER, not found, found, tuple(exceptions))
    return Certificate(FORMAT, ENGINE, version, base, (_named(old), _named(new)), (claim,))


def recheck(certificate: Certificate) -> None:
    """Decide it all again. Raises `CertificateError` for a difference, `Undecided` as `prove`."""
    if (certificate.format, certificate.engine) != (FORMAT, ENGINE):
        raise CertificateError(
            "the certificate is of another format or engine",
            f"this program checks {FORMAT} by {ENGINE}",
        )
    policies = [_policy(named) for named in certificate.policies]
    if not certificate.claims:
        raise CertificateError("the certificate claims nothing")
    base = certificate.base
    for claim in certificate.claims:
        if claim.statement == NO_WIDER and len(policies) == 2:
            old, new = policies
            again = compare(old, new, claim.exceptions, base=base, version="").claims[0]
        elif claim.statement != NO_WIDER and len(policies) == 1 and not claim.exceptions:
            again = prove(policies[0], [claim.statement], base=base, version="").claims[0]
        else:
            raise CertificateError("the certificate's claims and policies do not fit each other")
        if again != claim:
            raise CertificateError(
                f"the claim {canonical.printable(claim.statement, 200)!r} checks out differently",
                f"it is {'proved' if again.proved else 'disproved'}: {told(again)}",
            )


def told(claim: Claim) -> str:
    """A claim's verdict in a few words."""
    if claim.proved:
        return "no request contradicts it"
    return "; ".join(witness_text(each) for each in claim.witnesses)


def witness_text(witness: Witness) -> str:
    """A witness in a few words, printable."""
    what = " ".join(filter(None, (witness.effect, witness.verb, witness.resource)))
    return canonical.printable(f"{what}: {witness.why}")


def _named(policy: Policy) -> Named:
    return Named(policy.name, policy.digest, policy.canonical.decode("ascii"))


def _policy(named: Named) -> Policy:
    try:
        policy = from_canonical(named.text.encode())
    except PolicyError as error:
        raise CertificateError(f"a policy of the certificate is none: {error.message}") from None
    if policy.digest != named.digest or policy.name != named.name:
        raise CertificateError("a policy of the certificate is not the one that it names")
    return policy
