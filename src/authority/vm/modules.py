"""The kernel's modules that a guest loads, in an order in which each finds what it needs.

Rules
- They are taken as they are: their signatures are checked by the guest's kernel when it loads them.
- With each comes everything that it says it depends on, before it.
- One that is not there is built into the kernel, or the guest's first program says what it misses; a
  package without a single one that can be read is refused.
"""

from __future__ import annotations

from pathlib import Path

from authority.isolation import IsolationRefused


def in_order(folder: Path, wanted: tuple[str, ...]) -> list[tuple[str, bytes]]:
    """(name, content) of the modules and of what they depend on, each behind what it
    needs. Raises `IsolationRefused`."""
    files = {path.stem.replace("-", "_"): path for path in sorted(folder.rglob("*.ko"))}
    done: dict[str, bytes] = {}

    def add(name: str) -> None:
        path = files.get(name.replace("-", "_"))
        if path is None or path.name in done:
            return
        content = path.read_bytes()
        for one in _depends(content):
            add(one)
        done[path.name] = content

    for name in wanted:
        add(name)
    if not done:
        raise IsolationRefused("the kernel package holds no modules that can be read")
    return list(done.items())


def _depends(module: bytes) -> list[str]:
    at = module.find(b"\0depends=")
    if at < 0:
        return []
    text = module[at + 9 : module.index(b"\0", at + 9)].decode("ascii")
    return [name for name in text.split(",") if name]
