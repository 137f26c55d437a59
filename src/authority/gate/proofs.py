"""Recording a certificate: checked again first, kept with its policies, then named by an entry.

Rules
- The gate records what it has decided again itself, in a thread: a certificate that does not check
  out never gets an entry. That is done by the engine of this version alone.
- The certificate and the canonical policies are durable in the content store before the entry.
"""

from __future__ import annotations

import asyncio

from authority.audit.store import ContentStore
from authority.gate.control import ControlRefused
from authority.kernel import entries
from authority.kernel.canonical import printable
from authority.proof import certificate as certificates
from authority.proof.automata import Undecided
from authority.proof.certificate import Certificate, CertificateError
from authority.proof.statements import StatementError

MAX_TEXT = 1024
MAX_STATEMENTS = 64
"""What an entry shows of a long certificate; all of it is in the content store."""


async def checked(text: str, store: ContentStore) -> entries.Proof:
    """The entry for a certificate that checks out. Raises `ControlRefused` for any other."""
    try:
        found = certificates.decode(text.encode())
        await asyncio.to_thread(certificates.recheck, found)
    except (CertificateError, Undecided, StatementError) as error:
        raise ControlRefused(409, error.message, error.hint) from None
    for policy in found.policies:
        await store.put_durable(policy.text.encode())
    return _entry(found, await store.put_durable(found.encode()))


def _entry(found: Certificate, digest: str) -> entries.Proof:
    witness = next((w for claim in found.claims for w in claim.witnesses), None)
    shown = "" if witness is None else certificates.witness_text(witness)
    told = [printable(_told(claim), MAX_TEXT) for claim in found.claims]
    if len(told) > MAX_STATEMENTS:
        told[MAX_STATEMENTS:] = [f"and {len(told) - MAX_STATEMENTS} more"]
    return entries.Proof(
        statements=told,
        policies=[policy.digest for policy in found.policies],
        engine=found.engine,
        verdict="proved" if found.proved else "disproved",
        certificate=digest,
        witness=printable(shown, MAX_TEXT),
    )


def _told(claim: certificates.Claim) -> str:
    if not claim.exceptions:
        return claim.statement
    return f"{claim.statement}, but for {'; '.join(claim.exceptions)}"
