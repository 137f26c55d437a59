"""Images and saved states that others prune, build anew or change while a start reads them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from authority.isolation import IsolationRefused, SandboxSpec, probe
from authority.vm import cache, hypervisor, kernel, preparation, root, shelf, template
from authority.vm.kernel import Base


def stored(name: str, data: bytes) -> cache.Stored:
    with cache.building() as where:
        made = cache.aside(where)
        made.write_bytes(data)
        return cache.keep(where, name, made, {})


def content(data: bytes) -> cache.Held:
    """A file in memory, as what is saved."""
    held = cache.Held(cache.memory_file(), "", 0)
    os.pwrite(held.fd, data * 1000, 0)
    cache.seal(held.fd)
    return held


def pruned(_: Path) -> None:
    shelf.prune(unused=0)


def built_anew(where: Path) -> None:
    with cache.building():
        for path in [path for path in where.iterdir() if path.suffix == ".state"]:
            made = cache.aside(where)
            made.write_bytes(path.read_bytes() + b"other")
            found = cache.find(path.name)
            assert found is not None
            cache.keep(where, path.name, made, found.facts)


def tampered(where: Path) -> None:
    for path in where.glob("*.state"):
        path.chmod(0o600)
        path.write_bytes(b"other")


@pytest.mark.parametrize("meanwhile", [pruned, built_anew, tampered])
def test_a_state_that_is_removed_or_made_anew_while_it_is_read_is_made(
    meanwhile: Callable[[Path], None], images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its record and its bytes; what somebody changed without a record is refused as ever."""
    made = template._keep("made", *(content(b"%d" % n) for n in range(2)), {})
    cache._held.clear()
    load = cache.load

    def late(stored: cache.Stored) -> cache.Held:
        monkeypatch.setattr(cache, "load", load)
        meanwhile(images)
        return load(stored)

    monkeypatch.setattr(cache, "load", late)
    if meanwhile is tampered:
        with pytest.raises(IsolationRefused, match="not what was built"):
            template._find("made")
    else:
        assert template._find("made") is None
    monkeypatch.setattr(cache, "load", load)
    with contextlib.suppress(IsolationRefused):
        assert template._find("made") != made


@pytest.mark.usefixtures("images")
def test_a_start_whose_image_is_pruned_meanwhile_looks_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = Base(*(stored(name, b"the same") for name in ("kernel-1", "initramfs-1")))
    looked: list[cache.Stored] = []

    def ready(*_: object) -> cache.Stored:
        looked.append(stored("root-1", b"a root image"))
        if len(looked) <= prunes:
            shelf.prune(unused=0)
        return looked[-1]

    monkeypatch.setattr(kernel, "build", lambda *_, **__: base)
    monkeypatch.setattr(root, "ready", ready)
    monkeypatch.setattr(hypervisor, "find", lambda _: None)
    monkeypatch.setattr(preparation, "guest", lambda host, _: host)
    spec = SandboxSpec(("/bin/true",), "/")
    prunes = 2
    assert preparation.images(spec, probe(), emulate=True).root.digest == looked[-1].digest
    assert len(looked) == 3
    looked.clear()
    cache._held.clear()
    prunes = 100
    with pytest.raises(IsolationRefused, match="could not be read"):
        preparation.images(spec, probe(), emulate=True)
    assert len(looked) == 3
