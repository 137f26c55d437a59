"""The audit log: one append-only, hash-chained, signed and witnessed record of everything.

The nouns that other rooms use. Each is loaded when first asked for, so that reading an error class
does not load cryptography. `docs/log-format.md` gives the bytes.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from authority.audit.checkpoints import Checkpoint, Checkpointer
    from authority.audit.errors import LogCorrupt, LogError, LogPoisoned, LogTampered
    from authority.audit.notes import SigningKey, VerifyKey
    from authority.audit.opening import open_log
    from authority.audit.query import Filter, read, tail
    from authority.audit.store import ContentStore
    from authority.audit.verification import Report, verify
    from authority.audit.witness import DirectoryWitness
    from authority.audit.writer import Log, Receipt

__all__ = [
    "Checkpoint",
    "Checkpointer",
    "ContentStore",
    "DirectoryWitness",
    "Filter",
    "Log",
    "LogCorrupt",
    "LogError",
    "LogPoisoned",
    "LogTampered",
    "Receipt",
    "Report",
    "SigningKey",
    "VerifyKey",
    "open_log",
    "read",
    "tail",
    "verify",
]

_HOME = {
    "Checkpoint": "checkpoints",
    "Checkpointer": "checkpoints",
    "ContentStore": "store",
    "DirectoryWitness": "witness",
    "Filter": "query",
    "Log": "writer",
    "LogCorrupt": "errors",
    "LogError": "errors",
    "LogPoisoned": "errors",
    "LogTampered": "errors",
    "Receipt": "writer",
    "Report": "verification",
    "SigningKey": "notes",
    "VerifyKey": "notes",
    "open_log": "opening",
    "read": "query",
    "tail": "query",
    "verify": "verification",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(name)
    return getattr(import_module(f"authority.audit.{_HOME[name]}"), name)
