"""Which program this is: the digest of Authority's own files, as they were when the gate started.

A version's number says what was released; the digest also changes with a patch in place.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path


@functools.cache
def digest() -> str:
    """SHA-256 (hex) over the names and contents of the package's own modules and data."""
    root = Path(__file__).resolve().parents[1]
    h = hashlib.sha256(b"authority/build/1")
    for path in sorted(root.rglob("*")):
        if path.suffix in {".py", ".toml"} and path.is_file():
            for part in (str(path.relative_to(root)).encode(), path.read_bytes()):
                h.update(len(part).to_bytes(8, "big"))
                h.update(part)
    return h.hexdigest()
