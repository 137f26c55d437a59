"""Which program this is: the digest of Authority's own files, as they were when the gate started.

A version's number says what was released; the digest also changes with a patch in place.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator


@functools.cache
def digest() -> str:
    """SHA-256 (hex) over the names and contents of the package's own modules and data."""
    root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    h = hashlib.sha256(b"authority/build/1")
    for name in sorted(_names(root), key=lambda name: name.split("/")):
        with open(f"{root}/{name}", "rb") as file:
            for part in (name.encode(), file.read()):
                h.update(len(part).to_bytes(8, "big"))
                h.update(part)
    return h.hexdigest()


def _names(folder: str, below: str = "") -> Iterator[str]:
    """The modules and data in a folder and those below it. A gate that starts waits for this."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name == "__pycache__":
                continue  # made by whoever came first, and perhaps readable for nobody else
            if entry.is_dir(follow_symlinks=False):
                yield from _names(entry.path, f"{below}{entry.name}/")
            elif entry.name.endswith((".py", ".toml")) and entry.is_file():
                yield below + entry.name
