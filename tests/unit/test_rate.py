"""Rates as people write them."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher import executor
from dispatcher.errors import ExecutorError
from dispatcher.rate import default_burst, format_rate, parse_rate


@pytest.mark.parametrize(
    ("given", "rate", "shown"),
    [
        (5, 5.0, "5/s"),
        (0.5, 0.5, "30/min"),
        ("5/s", 5.0, "5/s"),
        ("90/min", 1.5, "1.5/s"),
        (" 1000 / h ", 1000 / 3600, "16.6667/min"),
        ("2/d", 2 / 86400, "2/d"),
        ("1.5/hour", 1.5 / 3600, "1.5/h"),
    ],
)
def test_rate_in_every_form(given: Any, rate: float, shown: str) -> None:
    assert parse_rate(given) == pytest.approx(rate)
    assert format_rate(rate) == shown


BAD = [0, -1, 0.0, float("nan"), float("inf"), 1e9, "0/s", "5", "5/week", "-5/s", "nan/s", "", None, True, [5]]


@pytest.mark.parametrize("given", BAD)
def test_what_is_no_rate_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="a rate is more than zero"):
        parse_rate(given)
    if given is not None:
        with pytest.raises(ExecutorError, match="executor 'x': a rate is more than zero"):
            executor("x", rate=given)


@pytest.mark.parametrize("name", ["limit", "tenant_limit", "burst"])
@pytest.mark.parametrize("count", [0, -1, 1.5, True, "5", 2**31])
def test_limits_of_an_executor_are_whole_and_one_or_more(name: str, count: Any) -> None:
    with pytest.raises(ExecutorError, match=f"executor 'x': {name} must be a whole number of 1 or more"):
        executor("x", **{name: count})


def test_burst_goes_with_a_rate() -> None:
    with pytest.raises(ExecutorError, match="burst goes with a rate"):
        executor("x", burst=5)
    assert (default_burst(0.1), default_burst(2.5)) == (1, 3)
