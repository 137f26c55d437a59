"""The one error of this room: a run can't be confined as asked, so it is not started."""

from __future__ import annotations

from authority.errors import AuthorityError


class IsolationRefused(AuthorityError):
    """`reason` says which part is missing, `fix` what a person can do about it."""

    def __init__(self, reason: str, fix: str = "") -> None:
        super().__init__(reason, fix)
        self.reason = reason
        self.fix = fix


def shown(text: str | bytes) -> str:
    """Foreign text (a path, a program's message) made fit for a terminal and for one line."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    return ascii(text)[1:-1].replace("\\'", "'")[:2000]
