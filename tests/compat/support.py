"""What the tests of the services behind a run's endpoints share."""

from __future__ import annotations

from typing import Any

from authority.kernel.policy import Policy, load


def policy(text: str = "", base: str = "/p") -> Policy:
    """A policy from TOML; the version line is added."""

    def no_parent(_base: str, name: str) -> Any:
        raise AssertionError(f"extends {name}")

    return load(
        "version = 1\n" + text, format="toml", base=base, name="test.toml", read_parent=no_parent
    )
