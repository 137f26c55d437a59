"""Which address of the run's model endpoint is which call.

Pure. `read` goes from a path, the headers that matter and a body to the request that was meant. A
query is refused, but for the `beta=true` that one SDK writes beside its header.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from authority.dialects import anthropic, json_text, openai
from authority.dialects.demand import (
    CHAT,
    COUNT,
    EMBEDDINGS,
    MESSAGES,
    RESPONSES,
    DemandError,
    Prepared,
    table,
)

PATHS: Final = {
    "/v1/chat/completions": CHAT,
    "/v1/responses": RESPONSES,
    "/v1/embeddings": EMBEDDINGS,
    "/v1/messages": MESSAGES,
    "/v1/messages/count_tokens": COUNT,
}
MODELS: Final = "/v1/models"
EFFECTS: Final = {
    CHAT: "model.chat",
    RESPONSES: "model.chat",
    MESSAGES: "model.chat",
    EMBEDDINGS: "model.embed",
    COUNT: "model.count",
}
VENDORS: Final = {api: api.partition(".")[0] for api in EFFECTS}
SUFFIXES: Final = {
    CHAT: "/chat/completions",
    RESPONSES: "/responses",
    EMBEDDINGS: "/embeddings",
    MESSAGES: "/v1/messages",
    COUNT: "/v1/messages/count_tokens",
}
"""What follows an upstream's address: an OpenAI one ends in its version, an Anthropic one does not."""
MAX_BETAS: Final = 16
_BETA: Final = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_VERSION: Final = re.compile(r"\d{4}-\d{2}-\d{2}\Z")
DEFAULT_VERSION: Final = "2023-06-01"


def split(target: str) -> str:
    """The path of a request's target; empty for a target that is not one of ours."""
    path, question, query = target.partition("?")
    return path if not question or query == "beta=true" else ""


def prepare(api: str, tree: dict[str, Any], headers: Mapping[str, str]) -> Prepared:
    """The request that a JSON value is. Raises `DemandError`. Header names are lower case."""
    if api == CHAT:
        return openai.chat(tree)
    if api == RESPONSES:
        return openai.responses(tree)
    if api == EMBEDDINGS:
        return openai.embeddings(tree)
    if api in (MESSAGES, COUNT):
        read = anthropic.messages if api == MESSAGES else anthropic.count
        return read(tree, betas(headers))
    raise DemandError("No such call.")


def read(api: str, headers: Mapping[str, str], body: bytes) -> Prepared:
    """The request that a body is. Raises `DemandError`, `JsonError`."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("application/json", ""):
        raise DemandError("The body must be application/json.")
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise DemandError("The body must not be compressed.")
    return prepare(api, table(json_text.decode(body), "The body"), headers)


def betas(headers: Mapping[str, str]) -> list[str]:
    """The features that `anthropic-beta` names. Raises `DemandError`."""
    found = [one.strip() for one in headers.get("anthropic-beta", "").split(",") if one.strip()]
    if len(found) > MAX_BETAS or not all(map(_BETA.match, found)):
        raise DemandError("anthropic-beta must be a list of plain names.")
    return found


def forwarded(api: str, headers: Mapping[str, str], *, stream: bool) -> list[tuple[str, str]]:
    """The headers of the request upstream, but for the key. Nothing else of the program's goes."""
    out = [
        ("content-type", "application/json"),
        ("accept", "text/event-stream" if stream else "application/json"),
        ("accept-encoding", "identity"),
        ("user-agent", "authority"),
    ]
    if VENDORS[api] == "anthropic":
        version = headers.get("anthropic-version", DEFAULT_VERSION)
        if not _VERSION.match(version):
            raise DemandError("anthropic-version must be a day.")
        out.append(("anthropic-version", version))
        if names := betas(headers):
            out.append(("anthropic-beta", ",".join(names)))
    return out
