"""The token bucket: never more than its burst at once, never more than its rate over time, from empty."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.bucket import Bucket


def test_it_begins_empty_and_fills_up_to_its_burst() -> None:
    bucket = Bucket(10.0, 3, now=0.0)
    assert bucket.available(0.0) == 0
    assert bucket.wait_s(0.0) == pytest.approx(0.1)
    assert bucket.available(0.1) == 1
    assert bucket.wait_s(0.1) == 0.0
    assert bucket.available(100.0) == 3
    bucket.take(3, 100.0)
    assert bucket.available(100.05) == 0
    assert bucket.wait_s(100.05) == pytest.approx(0.05)


def test_change_keeps_what_has_come_together_up_to_the_new_burst() -> None:
    bucket = Bucket(10.0, 10, now=0.0)
    bucket.change(1.0, 4, now=1.0)
    assert bucket.available(1.0) == 4
    bucket.change(100.0, 50, now=1.0)
    assert bucket.available(1.0) == 4
    assert bucket.available(1.1) == 14


@given(
    rate=st.floats(0.01, 1000.0),
    burst=st.integers(1, 50),
    steps=st.lists(st.tuples(st.floats(0.0, 10.0), st.integers(0, 60)), max_size=50),
)
def test_starts_never_exceed_rate_and_burst(rate: float, burst: int, steps: list[tuple[float, int]]) -> None:
    """Over any stretch of time: at most burst + rate * time, and nothing in the first instant."""
    bucket, now, starts = Bucket(rate, burst, now=0.0), 0.0, []
    for pause, wanted in steps:
        now += pause
        count = min(wanted, bucket.available(now))
        assert count <= burst
        bucket.take(count, now)
        starts.append((now, count))
    for first in range(len(starts)):
        total = 0
        for at, count in starts[first:]:
            total += count
            assert total <= burst + rate * (at - starts[first][0]) + 1e-6 * (1 + total)
    assert sum(count for _, count in starts) <= rate * now + 1e-6 * (1 + len(starts))
