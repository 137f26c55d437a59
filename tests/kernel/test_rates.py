"""GCRA and the sums: what a window lets through, that time never goes back, what is handed back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from authority.kernel.rates import Usage, UsageDelta, add, conform, subtract
from authority.tokens import Rate

SECOND = 1_000_000


def test_a_burst_passes_and_then_the_interval_rules() -> None:
    tat, passed = 0, []
    for now in [1000 * SECOND] * 5 + [1000 * SECOND + 200_000 * i for i in range(1, 11)]:
        new = conform(tat, now, interval=SECOND, burst=3)
        if new is not None:
            tat = new
            passed.append(now - 1000 * SECOND)
    assert passed == [0, 0, 0, SECOND, 2 * SECOND]


def test_exactly_at_the_interval_conforms_and_one_microsecond_before_does_not() -> None:
    tat = conform(0, 5 * SECOND, interval=SECOND, burst=1)
    assert tat == 6 * SECOND
    assert conform(tat, 6 * SECOND - 1, interval=SECOND, burst=1) is None
    assert conform(tat, 6 * SECOND, interval=SECOND, burst=1) == 7 * SECOND


def test_a_clock_that_stepped_back_waits() -> None:
    tat = conform(0, 10 * SECOND, interval=SECOND, burst=1)
    assert tat is not None
    assert conform(tat, 3 * SECOND, interval=SECOND, burst=1) is None
    assert add(Usage(tat=tat), UsageDelta(tat=4 * SECOND)).tat == tat


@pytest.mark.parametrize(("interval", "burst"), [(0, 1), (1, 0), (-1, 1)])
def test_what_is_no_rate_is_refused(interval: int, burst: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        conform(0, 0, interval=interval, burst=burst)


def test_the_interval_is_rounded_to_the_slow_side() -> None:
    assert Rate(count=3, per=SECOND).interval == 333_334
    assert Rate(count=10**7, per=SECOND).interval == 1


@settings(max_examples=150)
@given(
    st.integers(1, 50),
    st.integers(1, 6),
    st.lists(st.integers(0, 40), min_size=1, max_size=60),
    st.integers(0, 300),
)
def test_no_window_holds_more_than_it_may(
    interval: int, burst: int, steps: list[int], window: int
) -> None:
    now, tat, passed = 10_000, 0, []
    for step in steps:
        now += step
        new = conform(tat, now, interval=interval, burst=burst)
        if new is not None:
            assert new > tat
            tat = new
            passed.append(now)
    for start in passed:
        inside = sum(start <= each <= start + window for each in passed)
        assert inside <= burst + window // interval


amounts = st.dictionaries(st.sampled_from("abc"), st.integers(0, 1000), max_size=3)
deltas = st.builds(UsageDelta, st.integers(0, 10**6), st.integers(0, 3), amounts)


@settings(max_examples=100)
@given(st.lists(deltas, max_size=8), st.data())
def test_what_was_added_can_be_taken_back_in_any_order_but_not_time(
    given_deltas: list[UsageDelta], data: st.DataObject
) -> None:
    usage = Usage()
    for delta in given_deltas:
        usage = add(usage, delta)
    latest = usage.tat
    for delta in data.draw(st.permutations(given_deltas)):
        usage = subtract(usage, delta)
    assert usage.tat == latest == max((d.tat for d in given_deltas), default=0)
    assert usage.count == 0
    assert not any(usage.quotas.values())


def test_an_aborted_use_does_not_make_room_for_two_at_once() -> None:
    """Handing a place in the rate back after its time has drained would let B and C meet."""
    a = conform(0, 0, interval=SECOND, burst=1)
    usage = add(Usage(), UsageDelta(tat=a or 0, count=1))
    b = conform(usage.tat, SECOND, interval=SECOND, burst=1)
    usage = add(usage, UsageDelta(tat=b or 0, count=1))
    usage = subtract(usage, UsageDelta(tat=a or 0, count=1))
    assert conform(usage.tat, SECOND, interval=SECOND, burst=1) is None
    assert usage.count == 1


@pytest.mark.parametrize(
    "delta", [UsageDelta(count=2), UsageDelta(quotas={"x": 6}), UsageDelta(quotas={"y": 1})]
)
def test_more_is_never_given_back_than_was_taken(delta: UsageDelta) -> None:
    usage = Usage(count=1, quotas={"x": 5})
    with pytest.raises(ValueError, match="given back"):
        subtract(usage, delta)
    assert subtract(usage, UsageDelta(count=1, quotas={"x": 5})).quotas == {"x": 0}
