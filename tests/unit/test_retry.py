"""Back-off for any numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.retry import Backoff

chances = st.floats(0, 1)
backoffs = st.builds(
    Backoff,
    initial_s=st.floats(0, 1e6),
    factor=st.floats(1, 1e6),
    maximum_s=st.floats(0, 1e9),
    jitter=st.floats(0, 1),
)


@given(backoffs, st.integers(1, 32767), chances)
def test_delay_is_finite_and_within_maximum_and_jitter(backoff: Backoff, failures: int, chance: float) -> None:
    delay = backoff.delay_s(failures, chance)
    assert math.isfinite(delay)
    assert 0 <= delay <= backoff.maximum_s * (1 + backoff.jitter) * (1 + 1e-9)


@given(backoffs, st.integers(1, 100))
def test_delay_never_shrinks_with_failures(backoff: Backoff, failures: int) -> None:
    assert backoff.delay_s(failures, 0.5) <= backoff.delay_s(failures + 1, 0.5)


@given(backoffs, st.integers(1, 100), chances)
def test_jitter_spreads_around_the_middle(backoff: Backoff, failures: int, chance: float) -> None:
    middle = backoff.delay_s(failures, 0.5)
    assert abs(backoff.delay_s(failures, chance) - middle) <= middle * backoff.jitter * (
        1 + 1e-9
    ) + 1e-9 + 4 * math.ulp(middle)


def test_delays_of_the_default() -> None:
    assert [Backoff().delay_s(failures, 0.5) for failures in (1, 2, 3, 4, 20)] == [5, 10, 20, 40, 3600]
    assert Backoff().delay_s(10**9, 0.5) == 3600  # too large a power for a float


@pytest.mark.parametrize(
    "wrong",
    [
        {"initial_s": -1},
        {"factor": 0.5},
        {"maximum_s": -1},
        {"jitter": 1.1},
        {"jitter": -0.1},
        {"initial_s": math.nan},
        {"factor": math.nan},
        {"factor": math.inf},
        {"maximum_s": math.inf},
        {"maximum_s": math.nan},
        {"jitter": math.nan},
    ],
)
def test_senseless_numbers_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="back-off"):
        Backoff(**wrong)
