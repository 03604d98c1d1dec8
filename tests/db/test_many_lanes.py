"""Very many tenants: each claim looks at a bounded number of them, and yet each gets its turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from dispatcher.db import Connection
from dispatcher.lanes import MIN_LANES, TURN
from dispatcher.queries import claims
from dispatcher.queries.claims import Lane
from tests.db.leading import LIMITED, A, Leading
from tests.db.running import open_transaction, publish, session, value

TENANTS, EACH, ROOM = 2000, 20, 16
BY_TURNS = "order by n.number, t.number"
ONE_BY_ONE = "order by t.number, n.number"
FILL = """
insert into dispatcher.job (type, tenant, state, payload)
select 'a', 't' || t.number, 'pending', '{}'
from generate_series(1, %s) as t (number) cross join generate_series(1, %s) as n (number)
"""


@pytest.fixture
def leading(dsn: str, conn: Connection) -> Iterator[Leading]:
    """A dispatch with room for 16 jobs."""
    publish(conn, A)
    with session(dsn) as lease:
        yield Leading(lease, threads=ROOM)


def fill(conn: Connection, order: str) -> None:
    conn.execute((FILL + order).encode(), (TENANTS, EACH))
    conn.execute("analyze dispatcher.job")


def serve(leading: Leading, *, pause_s: float) -> list[str]:
    """One round, and its jobs end; their tenants."""
    leading.now += pause_s
    ids = leading.round()
    tenants = {taken.claimed.id: taken.claimed.tenant for taken in leading.pool.taken}
    leading.end(ids)
    return [tenants[id] for id in ids]


def test_within_a_burst_nobody_has_two_before_everybody_has_one(conn: Connection, leading: Leading) -> None:
    fill(conn, BY_TURNS)
    served: Counter[str] = Counter()
    for _ in range(TENANTS // ROOM):
        tenants = serve(leading, pause_s=0.0)
        assert len(tenants) == ROOM
        served.update(tenants)
    assert len(served) == TENANTS
    assert set(served.values()) == {1}


def test_within_a_burst_a_tenant_s_older_backlog_does_not_keep_the_others_waiting(
    conn: Connection, leading: Leading
) -> None:
    """All of the first tenant's jobs are older than any of the second's. Those that come round again compete, by age,
    only with as many as one claim considers."""
    fill(conn, ONE_BY_ONE)
    served: Counter[str] = Counter()
    for _ in range(TENANTS // ROOM):
        served.update(serve(leading, pause_s=0.0))
    assert len(served) >= TENANTS - MIN_LANES
    assert max(served.values()) <= 2


def test_tenants_that_enqueue_side_by_side_take_turns_whenever_the_lanes_are_read_again(
    conn: Connection, leading: Leading
) -> None:
    fill(conn, BY_TURNS)
    served: Counter[str] = Counter()
    for _ in range(TENANTS // ROOM):
        served.update(serve(leading, pause_s=60.0 if len(served) % 400 == 0 else 0.0))
    assert len(served) == TENANTS
    assert set(served.values()) == {1}


def test_tenants_take_turns_across_readings_of_the_lanes(conn: Connection, leading: Leading) -> None:
    """As the README promises: a tenant's backlog, older than everybody's jobs, is not served all before theirs."""
    fill(conn, ONE_BY_ONE)
    served: Counter[str] = Counter()
    for _ in range(5):
        served.update(serve(leading, pause_s=60.0))
    assert set(served.values()) == {1}


def test_a_round_among_many_tenants_needs_no_look_at_their_jobs(
    conn: Connection, leading: Leading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sharing the room among all of them once took longer than the statement may, and later longer than the jobs."""
    fill(conn, BY_TURNS)
    monkeypatch.setattr(claims, "share_lanes", None)
    for _ in range(TENANTS // ROOM + 10):
        assert len(serve(leading, pause_s=0.0)) == ROOM


def test_a_large_room_is_shared_in_turns_of_a_few_jobs(conn: Connection, leading: Leading) -> None:
    """A lane in a claim costs as much as a few of its jobs."""
    fill(conn, BY_TURNS)
    leading.pool.size = room = 800
    assert Counter(Counter(serve(leading, pause_s=0.0)).values()) == {TURN: room // TURN}


def test_turns_stop_where_a_worse_priority_begins(conn: Connection, leading: Leading) -> None:
    conn.execute((FILL + BY_TURNS).encode(), (4, EACH))
    conn.execute("update dispatcher.job set priority = 5 where id > 8")  # two of each tenant are left as they were
    assert Counter(serve(leading, pause_s=0.0)) == dict.fromkeys(("t1", "t2", "t3", "t4"), 2)
    assert Counter(serve(leading, pause_s=60.0)) == dict.fromkeys(("t1", "t2", "t3", "t4"), ROOM // 4)


def test_an_urgent_tenant_among_very_many_costs_no_look_either(
    conn: Connection, leading: Leading, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(conn, BY_TURNS)
    conn.execute("update dispatcher.job set priority = -1 where id <= 2")
    monkeypatch.setattr(claims, "share_lanes", None)
    assert serve(leading, pause_s=0.0) == ["t1", "t2"]
    assert len(set(serve(leading, pause_s=0.0))) == ROOM


def test_tenant_with_the_best_priority_is_served_first(conn: Connection, leading: Leading) -> None:
    """However many are before it by age, by name, and in the order in which the lanes were found."""
    fill(conn, ONE_BY_ONE)
    conn.execute("update dispatcher.job set priority = -5 where tenant = %s", (f"t{TENANTS}",))
    assert serve(leading, pause_s=0.0) == [f"t{TENANTS}"] * ROOM
    assert serve(leading, pause_s=60.0) == [f"t{TENANTS}"] * (EACH - ROOM)  # nothing of a worse priority in its round
    assert len(set(serve(leading, pause_s=0.0))) == ROOM, "then the others, one each"


def test_first_turns_of_many_tenants_keep_the_limit_of_their_type(conn: Connection, dsn: str) -> None:
    """Tenants of two types, the older of which has less room than the leader."""
    publish(conn, A, LIMITED)
    conn.execute((FILL + BY_TURNS).replace("'a'", "'limited'").encode(), (4 * ROOM, 1))
    conn.execute((FILL + BY_TURNS).encode(), (4 * ROOM, 1))
    with session(dsn) as lease:
        leading = Leading(lease, executors=(A, LIMITED), threads=ROOM)
        leading.round()
        assert Counter(taken.claimed.type for taken in leading.pool.taken) == {
            "limited": LIMITED.limit,
            "a": ROOM - (LIMITED.limit or 0),
        }


@pytest.mark.parametrize("aging_s", [None, 60.0])
def test_lanes_that_a_statement_may_not_hold_are_found_page_by_page(
    conn: Connection, monkeypatch: pytest.MonkeyPatch, aging_s: float | None
) -> None:
    """All in one statement, some hundred thousand tenants were more than its time allows, and nobody could lead."""
    monkeypatch.setattr(claims, "PAGE", 3)
    conn.execute((FILL + BY_TURNS).encode(), (10, 2))
    for type in ("a", "b", "c"):
        conn.execute("insert into dispatcher.job (type, state, payload) values (%s, 'pending', '{}')", (type,))

    def find(*skipped: str) -> list[Lane]:
        found = claims.list_lanes(conn, skipped) if aging_s is None else claims.list_aged_lanes(conn, aging_s, skipped)
        return [one.lane for one in found]

    tenants = ["", *sorted(f"t{n}" for n in range(1, 11))]
    priority = None if aging_s is None else 0
    everything = [
        *(Lane("a", tenant, priority) for tenant in tenants),
        Lane("b", "", priority),
        Lane("c", "", priority),
    ]
    assert find() == everything
    assert find("b") == everything
    assert find("a") == [everything[0], *everything[-2:]]


@pytest.mark.parametrize("aging_s", [None, 60.0])
def test_tenants_of_a_paused_or_foreign_type_cost_the_others_nothing(
    conn: Connection, dsn: str, monkeypatch: pytest.MonkeyPatch, aging_s: float | None
) -> None:
    """One that is paused may pile up jobs of very many tenants, and so may one that only other leases' leaders run."""
    publish(conn, A, LIMITED)
    for type in ("aa", "limited"):
        conn.execute((FILL + BY_TURNS).replace("'a'", f"'{type}'").encode(), (50, 1))
    conn.execute("insert into dispatcher.control (type, paused_at) values ('limited', now())")
    with session(dsn) as lease:
        leading = Leading(lease, executors=(A, LIMITED), aging_s=aging_s)
        assert leading.rounds() == []
        name = "list_lanes" if aging_s is None else "list_aged_lanes"
        read, found = getattr(claims, name), []

        def count(*args: Any) -> Any:
            answer = read(*args)
            found.append(len(answer))
            return answer

        monkeypatch.setattr(claims, name, count)
        conn.execute("insert into dispatcher.job (type, state, payload) values ('a', 'pending', '{}')")
        leading.dispatch.heard()
        assert len(leading.rounds()) == 1
        assert max(found) == 3, "one of each type"
        conn.execute("delete from dispatcher.control")
        leading.dispatch.heard_control()
        assert len(leading.rounds()) == LIMITED.limit


def test_first_turns_within_a_small_limit_cost_no_look_at_the_jobs(
    conn: Connection, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each round once went through all tenants, and then shared among some, where the type has less room than the
    leader."""
    publish(conn, LIMITED)
    conn.execute((FILL + BY_TURNS).replace("'a'", "'limited'").encode(), (TENANTS, 1))
    monkeypatch.setattr(claims, "share_lanes", None)
    with session(dsn) as lease:
        leading = Leading(lease, executors=(LIMITED,), threads=ROOM)
        for _ in range(20):
            assert len(serve(leading, pause_s=0.0)) == LIMITED.limit
    oldest = "select count(*) from dispatcher.job where state = 'succeeded' and id <= 60"
    assert value(conn, oldest) == 60


@pytest.mark.parametrize("aging_s", [None, 3600.0])
@pytest.mark.parametrize(("threads", "others"), [(1, 1), (2, 3), (ROOM, 100), (ROOM, 1000)])
def test_worse_priority_waits_within_a_burst_until_the_better_one_is_done(
    conn: Connection, dsn: str, threads: int, others: int, aging_s: float | None
) -> None:
    """The tenants of the worse one have had no turn yet, and there are more of them than a claim considers."""
    publish(conn, A)
    fill_priority = """
        insert into dispatcher.job (type, tenant, state, priority, payload)
        select 'a', %s || n %% %s, 'pending', %s, '{}' from generate_series(1, %s) as n
    """
    conn.execute(fill_priority.encode(), ("late", others, 5, 1000))
    conn.execute(fill_priority.encode(), ("urgent", 2, 0, 20 * threads))
    with session(dsn) as lease:
        leading = Leading(lease, threads=threads, aging_s=aging_s)
        for _ in range(22):
            serve(leading, pause_s=0.001)
        priorities = [taken.claimed.priority for taken in leading.pool.taken]
        assert priorities == [0] * 20 * threads + [5] * 2 * threads


def test_better_priority_that_comes_within_a_burst_is_served_at_the_next_reading(
    conn: Connection, leading: Leading
) -> None:
    fill(conn, BY_TURNS)
    serve(leading, pause_s=0.0)
    conn.execute(
        "insert into dispatcher.job (type, tenant, state, priority, payload) values ('a', 'z', 'pending', -1, '{}')"
    )
    assert serve(leading, pause_s=60.0)[0] == "z"
    assert value(conn, "select state from dispatcher.job where tenant = 'z'") == "succeeded"


def test_round_cut_short_among_locked_lanes_goes_on_behind_them(
    dsn: str, conn: Connection, leading: Leading, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of very many lanes are locked by somebody: a round ends in time for the heartbeat, and the one job that is
    free must neither wait for a poll nor behind the locked ones for ever."""
    monkeypatch.setattr("dispatcher.services.dispatch.MAX_STEP_S", -1.0)  # every look at locked lanes is one too long
    leading.pool.size = 1
    conn.execute((FILL + ONE_BY_ONE).encode(), (5 * MIN_LANES, 1))
    free = value(conn, "select max(id) from dispatcher.job")
    ids: list[int] = []
    with open_transaction(dsn, f"select from dispatcher.job where id <> {free} for update"):
        for _ in range(10 * MIN_LANES):
            if ids := leading.round():
                break
            assert not leading.dispatch.looked_everywhere  # or the leader would go to sleep
            leading.dispatch.read_again()
        assert ids == [free]


@pytest.mark.parametrize("worst", [1000, 0])
def test_lane_of_many_priorities_is_not_left_for_worse_ones(conn: Connection, leading: Leading, worst: int) -> None:
    """Equal takes stop where a worse priority begins, and a lane that gave less is left: the rest of it once waited
    for the next reading, while jobs far less urgent ran. And each round once claimed a single job."""
    fill_one = "insert into dispatcher.job (type, tenant, state, priority, payload) select 'a', %s, 'pending', "
    conn.execute((fill_one + "n, '{}' from generate_series(1, 48) as n").encode(), ("x",))
    conn.execute((fill_one + "%s + n, '{}' from generate_series(1, 600) as n").encode(), ("y", worst))
    served: list[str] = []
    for _ in range(12):
        served += serve(leading, pause_s=0.001)
    first = 48 if worst else 96  # of equal priorities, both in turn
    assert Counter(served[:first])["x"] == 48
    assert len(served) > 8 * ROOM
