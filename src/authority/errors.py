"""The base of every error that a person reads: what is wrong, and what to do about it."""

from __future__ import annotations


class AuthorityError(Exception):
    """One line that says what is wrong (`message`) and one that says what to do (`hint`).

    Both are shown on terminals and stored: whoever builds them passes foreign text through
    `authority.kernel.canonical.printable` first.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message
