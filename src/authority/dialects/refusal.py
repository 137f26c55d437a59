"""Refusals in the shape that each vendor's SDK understands.

Pure. A denial is 403: no SDK asks again after it. A request that nobody defines is 400, an unknown
address 404, a body that is too long 413; an upstream that could not be reached is 502, which SDKs do
ask again, and may. 408, 409 and 429 are never used for a denial, because SDKs repeat those.
"""

from __future__ import annotations

from typing import Any, Final

from authority.dialects import json_text

_ANTHROPIC: Final = {
    400: "invalid_request_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
}


def body(
    anthropic: bool, status: int, sentence: str, *, code: str = "", layer: str = "", number: int = 0
) -> bytes:
    """The JSON of an error. `sentence` is for the program; it names no detail of the policy."""
    message = f"{sentence} ({code})" if code else sentence
    more: dict[str, Any] = {}
    if code:
        more = {"authority": {"code": code, "layer": layer, "number": number}}
    if anthropic:
        kind = _ANTHROPIC.get(status, "api_error")
        return json_text.encode(
            {"type": "error", "error": {"type": kind, "message": message, **more}}
        )
    kind = "permission_denied" if status == 403 else "invalid_request_error"
    if status >= 500:
        kind = "server_error"
    return json_text.encode(
        {"error": {"message": message, "type": kind, "param": None, "code": code or None, **more}}
    )


def event(anthropic: bool, sentence: str, code: str = "") -> bytes:
    """The event that ends a stream which was broken off."""
    text = body(anthropic, 500, sentence, code=code)
    return (b"event: error\n" if anthropic else b"") + b"data: " + text + b"\n\n"
