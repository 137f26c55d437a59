"""What a person reads while a first start in a machine makes what later ones find."""

from __future__ import annotations

_TEXTS = {
    "kernel": "fetching a kernel and building a machine, once",
    "acceleration": "trying whether KVM boots a guest, up to 20 s",
    "image": "building the image of the program's files, once",
    "state": "booting the machine and saving its state, once",
}


def text(step: str) -> str:
    """A step in words; one that is not known here as it is."""
    return _TEXTS.get(step, f"preparing: {step}")
