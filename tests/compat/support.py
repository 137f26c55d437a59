"""What the tests of the services behind a run's endpoints share."""

from __future__ import annotations

from typing import Any

from authority.kernel.policy import Policy, load
from authority.kernel.policy_sections import Judgement
from authority.kernel.resources import Resource


def policy(text: str = "", base: str = "/p") -> Policy:
    """A policy from TOML; the version line is added."""

    def no_parent(_base: str, name: str) -> Any:
        raise AssertionError(f"extends {name}")

    return load(
        "version = 1\n" + text, format="toml", base=base, name="test.toml", read_parent=no_parent
    )


class FakeDoor:
    """A door without a gate: it judges by its policy and remembers what it was asked."""

    def __init__(self, under: Policy) -> None:
        self.policy = under
        self.run, self.cwd = "r1", "/p"
        self.denied: list[tuple[str, str, str]] = []
        self.glanced: list[str] = []
        self.listening: list[tuple[int, int]] = []
        self.troubles: list[str] = []

    async def deny(self, effect: str, resource: str, reason: str, **_: Any) -> None:
        self.denied.append((effect, resource, reason))

    def glance(self, effect: str, resource: Resource, verb: str = "") -> Judgement:
        self.glanced.append(resource.text)
        return self.policy.judge(effect, resource, verb)

    def listen(self, address: int, port: int) -> None:
        self.listening.append((address, port))

    def trouble(self, text: str) -> None:
        self.troubles.append(text)
