"""How many more may run: what runs here, what runs elsewhere, and rows that say so although nothing runs."""

from __future__ import annotations

import pytest

from dispatcher.capacity import Capacity
from dispatcher.executor import Executor, Registry
from dispatcher.inflight import InFlight
from tests.db.running import nothing

SLOW = Executor("slow", nothing, "tests.slow", limit=5, tenant_limit=4)
RATED = Executor("rated", nothing, "tests.rated", rate=1.0, burst=3)


@pytest.fixture
def capacity() -> Capacity:
    capacity = Capacity(registry=Registry([SLOW, RATED]), inflight=InFlight())
    capacity.set_limits({"*": 10})
    return capacity


@pytest.mark.parametrize("told", ["set_elsewhere", "set_unknown"])
def test_what_may_run_where_we_cannot_see_it_counts_against_every_limit(capacity: Capacity, told: str) -> None:
    getattr(capacity, told)({("slow", "ada"): 2, ("slow", ""): 1, ("rated", ""): 1})
    assert capacity.left() == 10 - 4
    assert capacity.slots("slow") == 5 - 3
    assert capacity.tenant_slots("slow", "ada") == 4 - 2
    assert capacity.tenant_slots("slow", "bob") == 4
    getattr(capacity, told)({})
    assert (capacity.left(), capacity.slots("slow"), capacity.tenant_slots("slow", "ada")) == (10, 5, 4)


def test_rate_begins_anew_with_each_term(capacity: Capacity) -> None:
    """What another leader has started meanwhile is not known: a bucket that was full may be empty."""
    capacity.begin(0.0)
    assert capacity.starts("rated", 100.0) == 3
    capacity.begin(100.0)
    assert capacity.starts("rated", 100.0) == 0
    assert capacity.starts("rated", 101.0) == 1
