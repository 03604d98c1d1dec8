"""Rules beside locks of others, busy types and very many tenants: nothing waits, nothing is claimed or read in vain."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from dispatcher.db import Connection
from dispatcher.executor import Executor
from dispatcher.queries import claims
from tests.db.beating import Beating
from tests.db.contenders import contender, register
from tests.db.leading import A, Leading
from tests.db.running import OWNER, nothing, open_transaction, publish, session, value
from tests.db.test_rules import control, fill, running

RATED = Executor("rated", nothing, "tests.rated", rate=10.0, burst=4)
FULL = replace(RATED, tenant_limit=1)
LOCK_CONTROL = "lock table dispatcher.control in access exclusive mode"


@pytest.fixture
def lease(dsn: str, conn: Connection) -> Iterator[Connection]:
    publish(conn, A, RATED)
    with session(dsn) as claiming:
        yield claiming


def lead(lease: Connection, *specs: Executor, **options: Any) -> Leading:
    return Leading(lease, executors=specs or (A, RATED), **options)


def throttled(conn: Connection) -> bool:
    return bool(value(conn, "select count(*) from dispatcher.throttle where held_until > now()"))


# Locks of others.


def test_somebody_s_lock_on_the_hint_is_passed_by(dsn: str, conn: Connection, lease: Connection) -> None:
    conn.execute("insert into dispatcher.throttle values ('rated', '2000-01-01')")
    fill(conn, "rated", "", 1)
    leading = lead(lease)
    with open_transaction(dsn, "select from dispatcher.throttle for update"):
        assert leading.rounds() == []
    leading.now += 60.0
    assert len(leading.rounds()) == 1


def test_somebody_s_lock_on_the_lease_s_row_keeps_no_rule_away(dsn: str, conn: Connection, lease: Connection) -> None:
    fill(conn, "a", "", 5)
    conn.execute("update dispatcher.lease set holder = %s", (OWNER,))
    leading = lead(lease)
    control(conn, "a", paused_at="now")
    with open_transaction(dsn, "select from dispatcher.lease for update"):
        leading.dispatch.set_limits({"*": 3})  # which is noted in that row
        assert leading.rounds() == []
    leading.now += 60.0
    leading.rounds()
    assert value(conn, "select max_running from dispatcher.lease where number = 1") == 3


def test_rule_whose_reading_met_a_lock_is_read_as_soon_as_it_is_gone(
    dsn: str, conn: Connection, lease: Connection
) -> None:
    """And not only by the next look after seconds: no job is claimed by the old rule meanwhile."""
    fill(conn, "a", "", 5)
    leading = lead(lease)
    control(conn, "a", paused_at="now")
    leading.dispatch.heard_control()
    with open_transaction(dsn, LOCK_CONTROL):
        for _ in range(2):
            with pytest.raises(psycopg.errors.LockNotAvailable):
                leading.round()
    assert leading.rounds() == []


@pytest.mark.parametrize("number", ["NaN", "Infinity", "0", "1e-9"])
def test_rate_that_no_leader_could_go_by_is_refused_by_the_table(conn: Connection, number: str) -> None:
    """Whoever owns the table may write to it: a leader that fell over it would take every other one with it."""
    with pytest.raises(psycopg.errors.CheckViolation):
        control(conn, "a", rate=number)


# What a rate holds back.


def test_rate_beside_a_busy_type_is_shown(conn: Connection, lease: Connection) -> None:
    """A leader that always finds something to claim shows it all the same."""
    leading = lead(lease, threads=2)
    fill(conn, "a", "", 20)
    fill(conn, "rated", "", 1)
    for _ in range(3):
        ids = leading.round()
        assert len(ids) == 2
        leading.end(ids)
    assert throttled(conn)


def test_rate_of_a_type_whose_tenants_are_all_full_wakes_nobody(conn: Connection, lease: Connection) -> None:
    leading = lead(lease, FULL)
    fill(conn, "rated", "x", 5)
    leading.rounds()
    leading.now += 0.1
    assert len(leading.rounds()) == 1
    assert leading.rounds() == []
    assert leading.dispatch.patience(9.0) == 9.0
    fill(conn, "rated", "y", 1)
    leading.dispatch.read_again()
    assert leading.rounds() == []
    assert leading.dispatch.patience(9.0) < 1.0  # and of one that has a slot does


@pytest.mark.parametrize("burst", [1, 2, 1000])
def test_fast_rate_is_reached_whatever_its_burst(conn: Connection, lease: Connection, burst: int) -> None:
    """Tokens gather for a moment, so that not each costs a round; but none may be lost by it."""
    leading = lead(lease, replace(RATED, rate=1000.0, burst=burst))
    fill(conn, "rated", "", 300)
    started = 0
    while leading.now < 1000.1:
        ids = leading.rounds()
        started += len(ids)
        leading.end(ids)
        leading.now += leading.dispatch.patience(9.0)
    assert 95 <= started <= 105


def test_token_among_very_many_lanes_costs_no_look_at_all_of_them(
    dsn: str, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look would take longer than the time between two tokens."""
    publish(conn, RATED)
    looks, list_lanes = [], claims.list_lanes

    def count(own: Connection, skipped: Collection[str]) -> list[claims.FoundLane]:
        looks.append(0)
        return list_lanes(own, skipped)

    for number in range(50):
        fill(conn, "rated", f"t{number}", 2)
    with contender(dsn, register(conn)) as contending:
        leading = lead(conn, replace(RATED, rate=200.0, burst=1), owner=contending._replica)
        beating = Beating(conn, contending, contending._replica, leading)
        beating.lead()
        monkeypatch.setattr("dispatcher.lanes.READ_AGAIN_S", 60.0)
        beating.leading.dispatch.read_again()
        monkeypatch.setattr(claims, "list_lanes", count)

        def enough() -> bool:
            leading.now = time.monotonic()
            return len(leading.pool.taken) >= 40

        beating.until(enough)
    assert len(looks) <= 5


# Metrics of who does not lead.


def test_only_who_leads_shows_what_it_goes_by(conn: Connection, lease: Connection) -> None:
    """Else a stand-by shows the code's limit, and a former leader one that is long changed, beside the true one."""
    leading = lead(lease)
    leading.dispatch.set_limits({"a": 5})
    leading.rounds()

    def shown() -> dict[str, float | None]:
        sample = leading.metrics.registry.get_sample_value
        return {
            name: sample(f"dispatcher_{name}", {"type": type})
            for name, type in (("limit", "a"), ("rate", "rated"), ("paused", "a"))
        }

    assert shown() == {"limit": 5, "rate": 10, "paused": 0}
    leading.dispatch.forget()
    assert shown() == {"limit": None, "rate": None, "paused": None}
    leading.dispatch.set_limits({"a": 6})
    assert shown() == {"limit": None, "rate": None, "paused": None}
    leading.dispatch.begin(leading.conn, 2)
    assert shown() == {"limit": 6, "rate": 10, "paused": 0}


# Aging.


def test_tenants_take_turns_with_aging_as_well(conn: Connection, lease: Connection) -> None:
    """The backlog of one is an hour old, which is sixty points; the other's few jobs of the same priority are new."""
    fill(conn, "a", "large", 2000)
    conn.execute("update dispatcher.job set created_at = now() - interval '1 hour' - (5000 - id) * interval '1 ms'")
    fill(conn, "a", "small", 10)
    leading = lead(lease, threads=20, aging_s=60.0)
    leading.round()
    assert running(conn, "a") == {"large": 10, "small": 10}


def test_aging_lifts_no_more_jobs_than_have_waited(conn: Connection, lease: Connection) -> None:
    """One old job of low priority must not draw the new ones of its priority along, before better ones."""
    fill(conn, "a", "", 30)
    conn.execute(
        "insert into dispatcher.job (type, state, priority, payload, created_at)"
        " select 'a', 'pending', 5, '{}', now() - (case n when 1 then 10 else 0 end) * interval '1 min'"
        " from generate_series(1, 30) as n"
    )
    leading = lead(lease, threads=10, aging_s=60.0)
    ids = leading.round()
    low = [taken.claimed for taken in leading.pool.taken if taken.claimed.priority == 5]
    assert (len(ids), len(low)) == (10, 1)
    assert low[0].waited_s > 500
