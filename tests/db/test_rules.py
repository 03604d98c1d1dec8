"""What the leader goes by: limits of tenants, rates, pauses, aging; changed at run time, kept by the next leader."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest

from dispatcher.db import Connection
from dispatcher.executor import Executor
from dispatcher.services.dispatch import CONTROL_S, THROTTLE_S
from tests.db.contenders import register
from tests.db.leading import LIMITED, A, B, Leading
from tests.db.running import claim, enqueue, nothing, publish, session, value

SHARED = Executor("shared", nothing, "tests.shared", limit=10, tenant_limit=3)
RATED = Executor("rated", nothing, "tests.rated", rate=10.0, burst=4)
ONE = Executor("one", nothing, "tests.one", limit=1)
SLOW = Executor("slow", nothing, "tests.slow", rate=10.0, burst=1)
ALL = (A, B, LIMITED, SHARED, RATED, ONE, SLOW)


@pytest.fixture
def lease(dsn: str, conn: Connection) -> Iterator[Connection]:
    publish(conn, *ALL)
    with session(dsn) as claiming:
        yield claiming


@pytest.fixture
def leading(lease: Connection) -> Leading:
    return Leading(lease, executors=ALL)


def fill(conn: Connection, type: str, tenant: str, count: int) -> None:
    conn.execute(
        "insert into dispatcher.job (type, tenant, state, payload)"
        " select %s, %s, 'pending', '{}' from generate_series(1, %s)",
        (type, tenant, count),
    )


def running(conn: Connection, type: str) -> Counter[str]:
    rows = conn.execute(
        "select tenant, count(*) from dispatcher.job where type = %s and state = 'running' group by tenant", (type,)
    )
    return Counter(dict(rows.fetchall()))


def control(conn: Connection, type: str, **columns: object) -> None:
    """As the functions of operators leave it."""
    columns = {"tenant": "", **columns}
    names = ", ".join(["type", *columns])
    marks = ", ".join(["%s"] * (len(columns) + 1))
    conn.execute("delete from dispatcher.control where type = %s and tenant = %s", (type, columns["tenant"]))
    conn.execute(f"insert into dispatcher.control ({names}) values ({marks})".encode(), (type, *columns.values()))


def test_tenant_never_passes_its_limit(conn: Connection, leading: Leading) -> None:
    for tenant in ("x", "y", "z", ""):
        fill(conn, "shared", tenant, 20)
    assert len(leading.rounds()) == 10  # the type's limit
    assert all(running(conn, "shared")[tenant] <= 3 for tenant in "xyz")
    leading.end([taken.claimed.id for taken in leading.pool.taken if taken.claimed.tenant == ""])
    leading.rounds()
    assert running(conn, "shared").total() == 10


def test_limits_hold_at_every_instant_whatever_ends(conn: Connection, leading: Leading) -> None:
    """At random, with the limits changed in between; the leader changes, too."""
    chance = random.Random(7)
    for tenant in ("", "x", "y", "z"):
        fill(conn, "shared", tenant, 150)
    most, tenant_most, own = 10, 3, 3
    for turn in range(60):
        if turn % 10 == 9:
            most, tenant_most, own = chance.randint(1, 12), chance.randint(1, 4), chance.randint(1, 6)
            control(conn, "shared", max_running=most, tenant_max_running=tenant_most)
            control(conn, "shared", tenant="z", max_running=own)
            leading.dispatch.heard_control()
        if turn == 30:  # another replica leads now, and the jobs of the first still run
            leading = Leading(leading.conn, owner=2, executors=ALL)
        before = running(conn, "shared")
        leading.rounds()
        now = running(conn, "shared")
        if now.total() > before.total():
            assert now.total() <= most
        for tenant in "xyz":
            if now[tenant] > before[tenant]:
                assert now[tenant] <= (own if tenant == "z" else tenant_most)
        ids = value(conn, "select array_agg(id) from dispatcher.job where state = 'running'") or []
        leading.end([id for id in ids if chance.random() < 0.5])
        leading.dispatch.heard()


def test_tenant_limit_counts_what_runs_elsewhere(conn: Connection, lease: Connection) -> None:
    fill(conn, "shared", "x", 10)
    claim(lease, "shared", tenant="x", take=2, owner=2)
    leading = Leading(lease, executors=ALL)
    assert len(leading.rounds()) == 1
    assert running(conn, "shared") == {"x": 3}


def test_limit_over_all_types_is_of_the_replicas_of_one_lease(conn: Connection, dsn: str, lease: Connection) -> None:
    """Two leaders that claim at the same time cannot keep one limit; and neither may take the other's room."""
    conn.execute("insert into dispatcher.lease (name) values ('other')")
    own, fellow, foreign = register(conn), register(conn), register(conn, lease=2)
    for type, owner in (("a", fellow), ("b", foreign)):
        enqueue(conn, type)
        assert claim(conn, type, owner=owner)
    leading = Leading(lease, owner=own)
    leading.dispatch.set_limits({"*": 3})
    fill(conn, "a", "", 10)
    assert len(leading.rounds()) == 2


def test_small_tenant_is_served_in_the_first_round(conn: Connection, lease: Connection) -> None:
    fill(conn, "a", "large", 20_000)
    fill(conn, "a", "small", 10)
    leading = Leading(lease, threads=20, executors=ALL)
    leading.round()
    assert running(conn, "a") == {"large": 10, "small": 10}


@pytest.mark.parametrize("aging_s", [None, 60.0])
@pytest.mark.parametrize("pause_s", [0.001, 0.11])
@pytest.mark.parametrize(("type", "threads"), [("a", 1), ("one", 16), ("slow", 16)])
def test_tenants_take_turns_where_one_job_starts_at_a_time(
    conn: Connection, lease: Connection, type: str, threads: int, pause_s: float, aging_s: float | None
) -> None:
    """As it is wherever jobs end one by one: by age the tenant with the backlog would have every turn."""
    fill(conn, type, "large", 100)
    fill(conn, type, "small", 10)
    leading = Leading(lease, threads=threads, executors=ALL, aging_s=aging_s)
    for _ in range(21):  # a rate's first token takes one
        leading.now += 0.1 if type == "slow" else pause_s
        leading.end(leading.round())
    started = [taken.claimed.tenant for taken in leading.pool.taken]
    assert started[:20] == ["large", "small"] * 10


def test_stream_of_new_tenants_keeps_no_older_one_waiting(conn: Connection, lease: Connection) -> None:
    """They come to the end of the queue, not before all that ever had a turn."""
    fill(conn, "a", "old", 100)
    leading = Leading(lease, threads=4, executors=ALL)
    for turn in range(20):
        for number in range(4):
            fill(conn, "a", f"new{turn}.{number}", 1)
        leading.now += 0.11
        leading.end(leading.round())
    started = Counter(taken.claimed.tenant for taken in leading.pool.taken)
    assert started.total() == 80
    assert 4 <= started["old"] <= 20


def test_paused_type_is_not_claimed_and_what_runs_goes_on(conn: Connection, leading: Leading) -> None:
    fill(conn, "a", "", 200)
    assert len(leading.rounds()) == 100
    fill(conn, "b", "", 5)
    control(conn, "a", paused_at="now", paused_by="ada")
    leading.dispatch.heard_control()
    leading.end([taken.claimed.id for taken in leading.pool.taken][:50])
    assert len(leading.rounds()) == 5
    assert (running(conn, "a").total(), running(conn, "b").total()) == (50, 5)
    assert leading.metrics.registry.get_sample_value("dispatcher_paused", {"type": "a"}) == 1
    leading = Leading(leading.conn, owner=2, executors=ALL)  # kept through a change of leader
    assert leading.rounds() == []
    control(conn, "a")
    leading.dispatch.heard_control()
    assert len(leading.rounds()) == 100  # it has threads of its own


def test_change_whose_notification_was_lost_is_found(conn: Connection, leading: Leading) -> None:
    fill(conn, "a", "", 10)
    control(conn, "a", max_running=2)
    leading.now += CONTROL_S
    assert len(leading.rounds()) == 2
    assert leading.metrics.registry.get_sample_value("dispatcher_limit", {"type": "a"}) == 2
    control(conn, "a", max_running=5)
    leading.dispatch.recount()  # as when the listener has connected again
    assert len(leading.rounds()) == 3


def test_operator_goes_before_setting_and_setting_before_code(conn: Connection, leading: Leading) -> None:
    fill(conn, "limited", "", 20)
    leading.dispatch.set_limits({"limited": 5})
    assert len(leading.rounds()) == 5
    control(conn, "limited", max_running=7)
    leading.dispatch.heard_control()
    assert len(leading.rounds()) == 2
    leading.dispatch.set_limits({"limited": 20})
    assert leading.rounds() == []
    control(conn, "limited")
    leading.dispatch.heard_control()
    assert len(leading.rounds()) == 13


def test_rate_is_kept_from_an_empty_bucket_and_through_a_change_of_leader(conn: Connection, leading: Leading) -> None:
    fill(conn, "rated", "", 100)
    assert leading.rounds() == []
    assert leading.dispatch.patience(9.0) == pytest.approx(0.1)  # until the first token
    leading.now += 0.1
    assert len(leading.rounds()) == 1
    leading.now += 60.0
    assert len(leading.rounds()) == 4  # the burst, however long it waited
    leading.now += 0.25
    assert len(leading.rounds()) == 2
    other = Leading(leading.conn, owner=2, executors=ALL)
    assert other.rounds() == []
    other.now += 0.2
    assert len(other.rounds()) == 2
    assert other.metrics.registry.get_sample_value("dispatcher_rate", {"type": "rated"}) == 10


@pytest.mark.parametrize("operator", [False, True])
def test_bucket_fills_while_no_job_is_there(conn: Connection, leading: Leading, operator: bool) -> None:
    """Else the first job of a type of one an hour waited for an hour, though none had started for a day."""
    if operator:
        control(conn, "a", rate=0.001, burst=1)
        leading.dispatch.heard_control()
    assert leading.rounds() == []
    leading.now += 3600.0
    fill(conn, "a" if operator else "rated", "", 10)
    leading.dispatch.heard()
    assert len(leading.rounds()) == (1 if operator else 4)


def test_start_that_was_given_back_is_not_waited_for_again(conn: Connection, leading: Leading) -> None:
    """What was claimed ahead goes back when an operator changes any rule: a rate of one an hour lost an hour by it."""
    control(conn, "rated", rate=1 / 3600, burst=1)
    leading.dispatch.heard_control()
    fill(conn, "rated", "", 10)
    assert leading.rounds() == []
    leading.now += 3600.0
    [id] = leading.rounds()
    leading.pool.take_waiting = lambda: leading.pool.taken[-1:]  # type: ignore[method-assign] # no thread had taken it
    leading.inflight.executing_in("thread").clear()
    control(conn, "b", max_running=5)
    leading.dispatch.heard_control()
    assert leading.rounds() == [id]
    leading.inflight.executing_in("thread").clear()
    leading.now += 1800.0
    assert leading.dispatch.return_waiting(leading.conn) == 1
    assert leading.rounds() == [id]
    assert leading.rounds() == []  # the burst, and no more


def test_rate_that_holds_jobs_back_is_shown(conn: Connection, leading: Leading) -> None:
    fill(conn, "rated", "", 10)
    leading.rounds()
    until = "select held_until > now() from dispatcher.throttle where type = 'rated'"
    assert value(conn, until)
    conn.execute("update dispatcher.throttle set held_until = '2000-01-01'")
    leading.rounds()
    assert not value(conn, until)  # not with each round
    leading.now += THROTTLE_S
    leading.rounds()
    assert len(leading.rounds()) == 0
    assert leading.dispatch.patience(0.01) == 0.01


def test_rate_that_holds_jobs_back_is_shown_while_others_run(conn: Connection, lease: Connection) -> None:
    leading = Leading(lease, threads=2, executors=ALL)
    fill(conn, "rated", "", 10)
    fill(conn, "a", "", 10)
    assert len(leading.round()) == 2
    assert value(conn, "select held_until > now() from dispatcher.throttle where type = 'rated'")
    assert (
        value(conn, "select (pools->>'thread')::integer from dispatcher.lease") is None
    )  # nobody holds the lease here


def test_rate_changed_at_run_time(conn: Connection, leading: Leading) -> None:
    fill(conn, "rated", "", 100)
    control(conn, "rated", rate=100.0, burst=50)
    leading.dispatch.heard_control()
    leading.rounds()
    leading.now += 0.3
    assert len(leading.rounds()) == 30
    control(conn, "rated", rate=1.0, burst=1)
    leading.dispatch.heard_control()
    leading.now += 5.0
    assert len(leading.rounds()) == 1


def test_rated_type_is_started_among_jobs_that_leave_no_thread_free(conn: Connection, lease: Connection) -> None:
    leading = Leading(lease, threads=4, executors=ALL)
    fill(conn, "rated", "", 5)
    fill(conn, "a", "", 100)
    leading.pool.rate = lambda: 100_000.0  # type: ignore[method-assign] # quick jobs: many are claimed ahead
    leading.round()
    assert running(conn, "rated").total() == 0
    leading.now += 0.5
    fill(conn, "a", "", 100)
    leading.dispatch.read_again()
    leading.round()
    assert running(conn, "rated").total() == 1


@pytest.mark.parametrize("aging", [False, True])
def test_old_job_of_low_priority_among_many_better_ones(conn: Connection, lease: Connection, aging: bool) -> None:
    """Better ones come faster than they run: without aging the old one starves, with it its time comes."""
    leading = Leading(lease, threads=2, aging_s=60.0 if aging else None, executors=ALL)
    old = enqueue(conn, "a", priority=5)
    conn.execute("update dispatcher.job set created_at = now() - interval '10 min' where id = %s", (old,))
    ran = []
    for _ in range(5):
        fill(conn, "a", "", 10)
        leading.now += 1.0
        ids = leading.round()
        ran += ids
        leading.end(ids)
    assert (old in ran) is aging
    if aging:
        assert old in ran[:2]  # ten minutes are ten points: -5 by now


def test_aging_keeps_order_limits_and_turns(conn: Connection, lease: Connection) -> None:
    specs = (replace(SHARED, limit=6, tenant_limit=2),)
    leading = Leading(lease, aging_s=3600.0, executors=specs)
    for priority in (0, 1, 2):
        for tenant in ("x", "y"):
            for _ in range(5):
                enqueue(conn, "shared", tenant=tenant, priority=priority)
    claimed = leading.rounds()
    assert running(conn, "shared") == {"x": 2, "y": 2}
    assert {taken.claimed.priority for taken in leading.pool.taken} == {0}
    leading.end(claimed)
    for _ in range(20):
        more = leading.rounds()
        assert all(count <= 2 for count in running(conn, "shared").values())
        leading.end(more)
    assert value(conn, "select count(*) from dispatcher.job where state = 'pending'") == 0
    order = [taken.claimed.priority for taken in leading.pool.taken]
    assert order == sorted(order)
