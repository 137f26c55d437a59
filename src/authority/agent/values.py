"""What the gate's answers become for an agent, where a dictionary would be clumsy."""

from __future__ import annotations

from typing import Any

import msgspec


class HttpResponse(msgspec.Struct, frozen=True):
    """What a server answered. `headers` are (name, value) pairs as they came; `url` is canonical."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    url: str

    def header(self, name: str, default: str = "") -> str:
        """The first header of this name, in whatever case."""
        wanted = name.lower()
        return next((value for key, value in self.headers if key.lower() == wanted), default)

    @property
    def text(self) -> str:
        """The body as text: in the character set that the server names, else UTF-8."""
        _, _, charset = self.header("content-type").lower().partition("charset=")
        name = charset.split(";")[0].strip(" \"'") or "utf-8"
        try:
            return self.body.decode(name, "replace")
        except LookupError:
            return self.body.decode("utf-8", "replace")

    def json(self) -> Any:
        """The body read as JSON. Raises msgspec.DecodeError."""
        return msgspec.json.decode(self.body)


class ModelAnswer(msgspec.Struct, frozen=True):
    """What a model's server answered: `status`, and the JSON of the API that was asked."""

    status: int
    body: bytes
    api: str

    def json(self) -> Any:
        """The body read as JSON. Raises msgspec.DecodeError."""
        return msgspec.json.decode(self.body)

    @property
    def text(self) -> str:
        """The words of the answer; empty for an error or for calls of tools alone."""
        value = self.json()
        if self.api == "openai.chat":
            parts = [{"text": c["message"]["content"]} for c in value.get("choices", ())[:1]]
        elif self.api == "openai.responses":
            parts = [p for item in value.get("output", ()) for p in item.get("content") or ()]
        else:
            parts = value.get("content") or []
        return "".join(part.get("text") or "" for part in parts)


class Message(msgspec.Struct, frozen=True):
    """A message of another run: its id, and what it sent."""

    sender: str
    data: bytes
