"""Secrets in streams: whatever the pieces, what comes out is what the whole would give."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from authority.effects.secret_forms import Scrubber, redact, spelled, usable

KEY = 'sk-/aB"c<d>&+=%7xyzXYZ0123~'
SELF = "abababababab"
KNOWN = (spelled(KEY, "[one]"), spelled(SELF, "[two]"))
FORMS = sorted({form for each in KNOWN for form in each.forms})


def fed(pieces: list[bytes]) -> tuple[bytes, int]:
    scrubber = Scrubber(KNOWN)
    out = b"".join([*map(scrubber.feed, pieces), scrubber.end()])
    return out, scrubber.places


@given(
    st.lists(
        st.one_of(
            st.sampled_from(FORMS),
            st.sampled_from(FORMS).flatmap(lambda f: st.integers(0, len(f)).map(lambda n: f[:n])),
            st.binary(max_size=12),
            st.sampled_from([b"ab", b"aba", b"sk-", b"sk-/"]),
        ),
        max_size=12,
    ),
    st.lists(st.integers(0, 400), max_size=12),
)
@example([b"ab" * 40], [7, 13, 14, 15, 33])
def test_pieces_give_what_the_whole_gives(parts: list[bytes], cuts: list[int]) -> None:
    whole = b"".join(parts)
    at = sorted({min(cut, len(whole)) for cut in cuts})
    pieces = [whole[a:b] for a, b in zip([0, *at], [*at, len(whole)], strict=True)]
    assert fed(pieces) == redact(whole, KNOWN)
    assert fed([bytes((byte,)) for byte in whole]) == redact(whole, KNOWN)


@pytest.mark.parametrize(
    "spelling",
    [
        KEY.encode(),
        KEY.upper().encode(),
        quote(KEY, safe="").encode(),
        base64.b64encode(b"user:" + KEY.encode()),
        base64.b64encode(b"us:" + KEY.encode() + b":x"),
        KEY.encode().hex().encode(),
    ],
)
def test_every_border_of_a_spelling(spelling: bytes) -> None:
    whole = b"before " + spelling + b" after"
    for cut in range(len(whole)):
        out, places = fed([whole[:cut], whole[cut:]])
        assert places == 1
        assert b"[one]" in out
        assert out.startswith(b"before ")
        assert out.endswith(b" after")


def test_an_innocent_stream_is_not_held_back() -> None:
    scrubber = Scrubber(KNOWN)
    for piece in (b"data: {}\n\n", b"0" * 5000, b"something else\n"):
        assert scrubber.feed(piece) == piece
    assert scrubber.feed(b"it ends in sk-") == b"it ends in "
    assert scrubber.feed(b"x") == b"sk-x"
    assert scrubber.end() == b""


def test_what_is_kept_back_is_bounded() -> None:
    scrubber = Scrubber(KNOWN)
    for _ in range(2000):
        scrubber.feed(b"ab" * 50)
    assert len(scrubber._held) < max(map(len, FORMS))
    assert scrubber.places == 1, "places that overlap are one"


def test_without_secrets_everything_passes() -> None:
    scrubber = Scrubber(())
    assert scrubber.feed(b"any") + scrubber.end() == b"any"
    assert not usable("short")
    assert usable("long enough")
