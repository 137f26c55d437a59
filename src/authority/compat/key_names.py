"""Where keys travel: names of headers and query parameters that authenticate somebody.

Pure. Rules
- Names are compared in lower case with `_` as `-`, as some gateways fold them. A parameter's name is
  compared without what stands in brackets behind it (`key[]`).
- Headers are known by name or by how they end. Parameters by name alone: endings would take the
  page tokens of half the world's interfaces.
- The lists err towards keys. They are only asked for hosts that have a credential rule.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote_plus


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_HEADERS: Final = _words(
    "authorization cookie cookie2 proxy-authorization authentication apikey api-key key token auth "
    "secret password session signature x-amz-security-token"
)
_HEADER_ENDS: Final = tuple(
    f"-{word}"
    for word in _words(
        "key apikey token auth authorization authentication secret password passwd signature "
        "session session-id credential credentials jwt cookie"
    )
)
_NO_KEYS: Final = _words(
    "idempotency-key x-idempotency-key sec-websocket-key x-cache-key surrogate-key"
)
_PARAMETERS: Final = _words(
    "key apikey api-key appkey app-key accesskey access-key accesskeyid awsaccesskeyid "
    "access-token accesstoken auth auth-token authtoken authorization bearer token oauth-token "
    "id-token refresh-token jwt password passwd pwd secret client-secret private-token job-token "
    "user-token personal-access-token sig signature session session-id sessionid sid x-api-key "
    "x-auth-token x-amz-signature x-amz-credential x-amz-security-token x-goog-signature "
    "x-goog-credential googleaccessid subscription-key"
)


def folded_name(name: str) -> str:
    """A name as it is compared."""
    return name.lower().replace("_", "-")


def is_key_header(folded: str) -> bool:
    """Whether a (folded) header may carry a key."""
    if folded in _NO_KEYS:
        return False
    return folded in _HEADERS or folded.endswith(_HEADER_ENDS)


def is_key_parameter(raw: str) -> bool:
    """Whether a query parameter, as it stands in the query, may carry a key."""
    return folded_name(unquote_plus(raw).partition("[")[0].strip()) in _PARAMETERS
