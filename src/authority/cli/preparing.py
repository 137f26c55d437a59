"""What a person reads while a first start in a machine makes what later ones find, or waits for another
that does."""

from __future__ import annotations

_TEXTS = {
    "kernel": "fetching a kernel and building a machine, once",
    "acceleration": "trying whether KVM boots a guest, up to 20 s",
    "image": "building the image of the program's files, once",
    "state": "booting the machine and saving its state, once",
    "waiting": "waiting for another process that builds images here",
    "waiting-kernel": "waiting for another run, which fetches a kernel and builds a machine",
    "waiting-acceleration": "waiting for another run, which tries whether KVM boots a guest",
    "waiting-image": "waiting for another run, which builds the image of its program's files",
    "waiting-state": "waiting for another run, which boots the machine and saves its state",
}


def text(step: str) -> str:
    """A step in words; one that is not known here as it is."""
    return _TEXTS.get(step, f"preparing: {step}")
