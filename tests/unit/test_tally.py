"""The tally: buckets, quantiles, and what is counted under whom."""

from __future__ import annotations

import random
import threading
from bisect import bisect_left

import pytest

from dispatcher.metrics import SECONDS
from dispatcher.tally import BOUNDS, BUCKETS, GROWTH, Counts, Key, Tally, Tries, quantile, spread


def tries(*seconds: float, end: str = "succeeded", tenant: str = "") -> Tries:
    """That ended so, each having run and waited so long."""
    group = Tries()
    for one in seconds:
        group.ends.append(end)
        group.durations.append(one)
        group.waits.append(one)
        if tenant:
            group.tenanted.append((tenant, end, one, one))
    return group


def histogram(values: list[float]) -> list[int]:
    counts = [0] * BUCKETS
    spread(values, BOUNDS[:-1], counts)
    return counts


@pytest.mark.parametrize("bounds", [BOUNDS[:-1], SECONDS])
@pytest.mark.parametrize("count", [0, 1, 5, 19, 20, 21, 1000])
def test_many_values_fall_where_each_would_by_itself(bounds: tuple[float, ...], count: int) -> None:
    chance = random.Random(count)
    values = [chance.lognormvariate(-2, 4) for _ in range(count)]
    values += [*bounds, 0.0, -1.0, 1e9] if count else []
    expected = [0] * (len(bounds) + 1)
    for value in values:
        expected[bisect_left(bounds, value)] += 1
    found = [0] * (len(bounds) + 1)
    spread(values, bounds, found)
    assert found == expected


def test_values_far_out_fall_into_the_first_and_the_last_bucket() -> None:
    for values in ([-5.0, 0.0, 1e-9, 1e9, float("inf")], [-5.0, 0.0, 1e-9, 1e9, float("inf")] * 10):
        counts = histogram(list(values))
        assert counts[0] * 2 == counts[-1] * 3 == len(values) * 6 / 5
    assert BOUNDS[-1] > 86_400


@pytest.mark.parametrize("q", [0.5, 0.95, 0.99])
@pytest.mark.parametrize(("mean", "spread_by"), [(-5.0, 0.5), (0.0, 1.5), (4.0, 2.0)])
def test_quantile_is_right_to_the_width_of_a_bucket(q: float, mean: float, spread_by: float) -> None:
    chance = random.Random(1)
    values = sorted(chance.lognormvariate(mean, spread_by) for _ in range(10_000))
    true = values[round(q * len(values)) - 1]
    found = quantile(histogram(list(values)), q)
    assert found is not None
    assert true / GROWTH <= found <= true * GROWTH or max(found, true) <= BOUNDS[0]


def test_quantile_is_interpolated_by_the_logarithm() -> None:
    counts = [0.0] * BUCKETS
    counts[10] = 8.0
    assert quantile(counts, 0.5) == pytest.approx((BOUNDS[9] * BOUNDS[10]) ** 0.5)
    assert quantile(counts, 1.0) == pytest.approx(BOUNDS[10])


def test_quantile_of_nothing_is_none_and_rounding_finds_an_end() -> None:
    assert quantile([], 0.5) is None
    assert quantile([0.0] * BUCKETS, 0.5) is None
    assert quantile([0.1] * 10 + [0.0] * 30, 1.0) == pytest.approx(BOUNDS[9])
    assert quantile([3], 1.0) == BOUNDS[0]  # what is trimmed away was zero


def test_job_of_a_tenant_counts_as_its_own_and_among_all() -> None:
    tally = Tally()
    tally.add({"mail": tries(0.1, 0.1, tenant="acme")})
    tally.add({"mail": tries(0.1), "call": tries(5.0, end="retried")})
    tally.add({"mail": tries(0.1, end="failed", tenant="other")})
    taken = tally.take()

    def told(key: Key) -> tuple[int, int, int, int]:
        one = taken[key]
        return one.ended["succeeded"], one.ended["failed"], one.ended["retried"], sum(one.ran)

    assert {key: told(key) for key in taken} == {
        ("mail", ""): (3, 1, 0, 4),
        ("mail", "acme"): (2, 0, 0, 2),
        ("mail", "other"): (0, 1, 0, 1),
        ("call", ""): (0, 0, 1, 1),
    }


def test_same_histogram_for_the_tenant_as_for_all() -> None:
    values = [random.Random(7).lognormvariate(0, 3) for _ in range(500)]
    tally = Tally()
    tally.add({"mail": tries(*values, tenant="acme")})
    taken = tally.take()
    assert taken["mail", ""].ran == taken["mail", "acme"].ran == taken["mail", "acme"].waited


def test_somebody_is_told_of_the_first_after_each_taking() -> None:
    told: list[None] = []
    tally = Tally(noted=lambda: told.append(None))
    assert not tally
    tally.add({})
    assert not told
    tally.add({"mail": tries(0.1)})
    tally.add({"mail": tries(0.1)})
    assert (len(told), bool(tally)) == (1, True)
    tally.take()
    assert not tally
    tally.add({"mail": tries(0.1)})
    assert len(told) == 2


def test_nothing_is_lost_between_threads() -> None:
    tally, taken, done = Tally(), list[dict[Key, Counts]](), threading.Event()

    def add() -> None:
        for _ in range(500):
            tally.add({"mail": tries(0.1, tenant="acme")})

    def take() -> None:
        while not done.is_set():
            taken.append(tally.take())

    adders = [threading.Thread(target=add) for _ in range(3)]
    taker = threading.Thread(target=take)
    for thread in (taker, *adders):
        thread.start()
    for thread in adders:
        thread.join()
    done.set()
    taker.join()
    taken.append(tally.take())
    for key in (("mail", ""), ("mail", "acme")):
        assert sum(one[key].ended["succeeded"] for one in taken if key in one) == 1500
