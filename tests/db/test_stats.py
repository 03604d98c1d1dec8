"""Statistics: each job is counted once, written by whoever settled it, and read from windows that slide."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result
from dispatcher.sql import statement

from dispatcher import AsyncClient, Client
from dispatcher.cli import main
from dispatcher.db import Connection
from dispatcher.errors import InvalidOption
from dispatcher.executor import Registry
from dispatcher.inflight import Execution
from dispatcher.job import Job
from dispatcher.metrics import Metrics
from dispatcher.outcome import JobError, Outcome
from dispatcher.queries import stats
from dispatcher.queries.operation import perform
from dispatcher.queries.stats import TypeStats
from dispatcher.replica import Replica
from dispatcher.services import teller as teller_module
from dispatcher.services.rescuer import Rescuer
from dispatcher.services.teller import Teller
from dispatcher.settings import Settings
from dispatcher.tally import BOUNDS, GROWTH, Tally
from tests.db.contenders import NOWHERE, Clock, register
from tests.db.running import (
    QUICK,
    Settling,
    as_job,
    claim,
    enqueue,
    execution,
    open_transaction,
    session,
    value,
)
from tests.unit.test_tally import tries

ERROR = JobError("exception", "ValueError: no")
SUMS = (
    "select grain, type, tenant, succeeded, partial, failed, canceled, retried from dispatcher.tally order by 1, 2, 3"
)


class Telling:
    """A teller with what it needs."""

    def __init__(self, dsn: str, conn: Connection, tally: Tally) -> None:
        self.sessions: list[Connection] = []
        self.dsn, self.tally, self.clock, self.stop, self.metrics = dsn, tally, Clock(), threading.Event(), Metrics()
        self.replica = register(conn)
        self.teller = Teller(
            open_session=self.open,
            tally=tally,
            replica=self.replica,
            metrics=self.metrics,
            stop=self.stop,
            clock=self.clock,
        )

    def open(self) -> Connection:
        self.sessions.append(session(self.dsn))
        return self.sessions[-1]


@pytest.fixture
def telling(dsn: str, conn: Connection, settling: Settling) -> Iterator[Telling]:
    """Tells what `settling` settles."""
    made = Telling(dsn, conn, settling.tally)
    yield made
    made.teller.close()


@pytest.fixture
def client(dsn: str) -> Iterator[Client]:
    with Client(dsn) as made:
        yield made


def ran(claimed: Any, outcome: Outcome | None = None, *, run_s: float = 0.1, wait_s: float = 2.0) -> Execution:
    """An attempt that ran and had waited so long."""
    ended = execution(claimed, outcome)
    ended.claimed = claimed._replace(waited_s=wait_s)
    ended.claimed_at, ended.started_at, ended.ended_at = 50.0, 50.0, 50.0 + run_s
    return ended


def add(conn: Connection, grain: str, at: datetime, succeeded: int, **more: Any) -> None:
    """A row as a teller leaves it."""
    row = {"grain": grain, "at": at, "type": "quick", "succeeded": succeeded, **more}
    names, places = ", ".join(row), ", ".join(f"%({name})s" for name in row)
    conn.execute(f"insert into dispatcher.tally ({names}) values ({places})".encode(), row)


def sums(conn: Connection) -> list[tuple[Any, ...]]:
    return conn.execute(SUMS.encode()).fetchall()


# What is counted.


def test_each_end_is_counted_once_in_the_minute_and_the_hour(
    conn: Connection, lease: Connection, settling: Settling, telling: Telling
) -> None:
    for _ in range(7):
        enqueue(conn)
    jobs = claim(lease)
    ends: list[Callable[[Any], Outcome]] = [
        lambda j: Outcome.succeeded(j, None),
        lambda j: Outcome.partial(j, "[1]", '[{"kind": "item", "message": "bad", "item": 17}]'),
        lambda j: Outcome.failed(j, ERROR),
        Outcome.canceled,
        lambda j: Outcome.retry(j, 0.0, ERROR),
        lambda j: Outcome.snooze(j, 60.0),
        Outcome.release,
    ]
    settling.settle(*(ran(one, end(as_job(one))) for one, end in zip(jobs, ends, strict=True)))
    settling.settle(*(ran(one) for one in claim(lease)))  # the retried one and the released one, which succeed
    telling.teller.write()
    assert sums(conn) == [(grain, "quick", "", 3, 1, 1, 1, 1) for grain in ("hour", "minute")]
    tried = value(conn, "select array(select sum(n) from unnest(ran) n) from dispatcher.tally where grain = 'hour'")
    assert tried == [9]


def test_late_attempt_is_not_counted(conn: Connection, lease: Connection, settling: Settling, telling: Telling) -> None:
    id = enqueue(conn)
    (late,) = claim(lease)
    conn.execute("update dispatcher.job set state = 'pending' where id = %s", (id,))
    (fresh,) = claim(lease)
    settling.settle(ran(late))
    assert not settling.tally
    settling.settle(ran(fresh))
    telling.teller.write()
    assert sums(conn)[0][3:] == (1, 0, 0, 0, 0)


@contextmanager
def answers_lost(conn: Connection, part: bytes) -> Iterator[None]:
    """The server does what a statement says and the session dies before it can tell."""
    execute = conn.execute

    def lose(*args: Any, **kwargs: Any) -> Any:
        answer = execute(*args, **kwargs)
        if part in args[0]:
            conn.close()
            raise psycopg.OperationalError("server closed the connection unexpectedly")
        return answer

    conn.execute = lose  # type: ignore[method-assign]
    yield


@pytest.mark.parametrize("part", [b"finish_jobs", b"finish_plain_jobs"])
def test_outcome_whose_answer_was_lost_is_counted_once(
    conn: Connection, lease: Connection, settling: Settling, telling: Telling, part: bytes
) -> None:
    for _ in range(5):
        enqueue(conn, tenant="acme")
    first, *others = claim(lease, tenant="acme")
    settling.settle(ran(first, Outcome.succeeded(as_job(first), None)))
    assert settling.completer._conn is not None
    result = None if part == b"finish_plain_jobs" else "1"
    with answers_lost(settling.completer._conn, part):
        settling.settle(*(ran(one, Outcome.succeeded(as_job(one), result)) for one in others))
    assert len(settling.inflight) == 4
    settling.completer.step()
    settling.completer.step()
    telling.teller.write()
    assert sums(conn) == [(g, "quick", t, 5, 0, 0, 0, 0) for g in ("hour", "minute") for t in ("", "acme")]
    assert settling.finished("succeeded") == 5


def test_retry_whose_answer_was_lost_is_counted_once_though_the_next_try_runs(
    conn: Connection, lease: Connection, settling: Settling, telling: Telling
) -> None:
    for _ in range(3):
        enqueue(conn)
    first, *others = claim(lease)
    settling.settle(ran(first))
    assert settling.completer._conn is not None
    with answers_lost(settling.completer._conn, b"reschedule_jobs"):
        settling.settle(*(ran(one, Outcome.retry(as_job(one), 0.0, ERROR)) for one in others))
    again = claim(lease)
    assert [one.attempt for one in again] == [2, 2]
    settling.completer.step()
    assert settling.stale() == 0
    settling.settle(*(ran(one) for one in again))
    telling.teller.write()
    assert sums(conn)[0][3:] == (3, 0, 0, 0, 2)


@pytest.mark.parametrize("end", [Outcome.release, lambda job: Outcome.snooze(job, 60.0)], ids=["release", "snooze"])
def test_time_of_a_try_that_was_put_back_is_counted_though_its_answer_was_lost(
    conn: Connection, lease: Connection, settling: Settling, telling: Telling, end: Callable[[Job], Outcome]
) -> None:
    """Its row has no owner any more."""
    for _ in range(2):
        enqueue(conn, tenant="acme")
    first, second = claim(lease, tenant="acme")
    settling.settle(ran(first, end(as_job(first))))
    assert settling.completer._conn is not None
    with answers_lost(settling.completer._conn, b"reschedule_jobs"):
        settling.settle(ran(second, end(as_job(second))))
    settling.completer.step()
    telling.teller.write()
    look = "select sum(n) from dispatcher.tally t, unnest(t.ran) n where t.tenant = 'acme' and t.grain = 'hour'"
    assert value(conn, look) == 2


def test_job_that_completed_itself_is_counted(
    conn: Connection, lease: Connection, settling: Settling, telling: Telling
) -> None:
    class Completed:
        completed = True

    id = enqueue(conn)
    (claimed,) = claim(lease)
    conn.execute("update dispatcher.job set state = 'succeeded' where id = %s", (id,))
    ended = ran(claimed)
    ended.ctx = Completed()  # type: ignore[assignment] # all that is asked of it
    settling.settle(ended)
    telling.teller.write()
    assert sums(conn)[0][3:] == (1, 0, 0, 0, 0)
    assert settling.finished("succeeded") == 1


# Writing.


def test_idle_replica_asks_and_writes_nothing(telling: Telling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teller_module, "IDLE_S", 0.0)
    for _ in range(3):
        telling.teller.step()
    telling.teller.wake()
    telling.teller.step()
    telling.teller.close()
    assert telling.sessions == []


def test_writes_come_together_and_add_up(conn: Connection, telling: Telling) -> None:
    telling.teller._pause_s = 0.0
    for seconds in ([0.1], [0.1, 0.1, 90.0], [0.0]):
        telling.tally.add({"quick": tries(*seconds)})
        telling.teller.wake()
        telling.teller.step()
        telling.teller._pause_s = 0.0
    assert sums(conn) == [(grain, "quick", "", 5, 0, 0, 0, 0) for grain in ("hour", "minute")]
    rows = conn.execute("select ran, waited from dispatcher.tally").fetchall()
    expected = [0] * 26
    expected[0], expected[10], expected[25] = 1, 3, 1
    assert rows == [(expected, expected)] * 2
    assert len(telling.sessions) == 1


def test_stop_is_not_slept_over_and_the_rest_is_written(conn: Connection, telling: Telling) -> None:
    telling.tally.add({"quick": tries(0.1)})
    telling.stop.set()
    telling.teller.wake()
    telling.teller.step()  # else it would wait for five seconds, and the idle one for a minute
    assert sums(conn) == []
    telling.teller.close()
    assert sums(conn) == [(grain, "quick", "", 1, 0, 0, 0, 0) for grain in ("hour", "minute")]
    assert telling.sessions[0].closed


def test_lost_session_loses_no_count(conn: Connection, telling: Telling) -> None:
    telling.tally.add({"quick": tries(0.1)})
    telling.teller.write()
    conn.execute("select pg_terminate_backend(%s)", (telling.sessions[0].info.backend_pid,))
    for _ in range(3):
        telling.tally.add({"quick": tries(0.1)})
        telling.teller._pause_s = 0.0
        telling.teller.wake()
        telling.teller.step()
    assert sums(conn)[0][3] == 4
    assert len(telling.sessions) == 2


def test_write_whose_answer_was_lost_counts_once(conn: Connection, telling: Telling) -> None:
    telling.tally.add({"quick": tries(0.1)})
    telling.teller.write()
    telling.tally.add({"quick": tries(0.1, 0.1)})
    telling.teller.wake()
    telling.teller._pause_s = 0.0
    with answers_lost(telling.sessions[0], b"add_tallies"):
        telling.teller.step()
    assert sums(conn)[0][3] == 3  # the server has it, the teller does not know
    telling.tally.add({"quick": tries(0.1)})
    telling.teller.step()
    assert sums(conn)[0][3] == 4
    assert len(telling.sessions) == 2


def test_rows_that_somebody_holds_are_written_later_on_the_same_session(
    dsn: str, conn: Connection, telling: Telling
) -> None:
    telling.teller._pause_s = 0.0
    telling.tally.add({"quick": tries(0.1)})
    with open_transaction(dsn, "lock table dispatcher.tally"):
        telling.teller.wake()
        telling.teller.step()
        telling.tally.add({"quick": tries(0.1)})
    telling.teller.step()
    assert sums(conn)[0][3] == 2
    assert len(telling.sessions) == 1


def test_long_write_is_followed_by_a_pause_of_fifty_times_as_long(
    telling: Telling, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*args: Any, **kwargs: Any) -> None:
        telling.clock.now += 0.7

    monkeypatch.setattr(stats, "add_tallies", slow)
    telling.tally.add({"quick": tries(0.1)})
    telling.teller.write()
    assert telling.teller._pause_s == pytest.approx(35.0)
    monkeypatch.setattr(stats, "add_tallies", lambda *args, **kwargs: None)
    telling.tally.add({"quick": tries(0.1)})
    telling.teller.write()
    assert telling.teller._pause_s == 5.0

    def fail(*args: Any, **kwargs: Any) -> None:
        telling.clock.now += 30.0
        raise psycopg.errors.QueryCanceled("canceling statement due to statement timeout")

    monkeypatch.setattr(stats, "add_tallies", fail)
    telling.tally.add({"quick": tries(0.1)})
    telling.teller._pause_s = 0.0
    telling.teller.wake()
    telling.teller.step()
    assert telling.teller._pause_s == 1500.0
    monkeypatch.setattr(stats, "add_tallies", lambda *args, **kwargs: None)


def test_many_tenants_are_written_in_pieces(
    conn: Connection, telling: Telling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teller_module, "MAX_ROWS", 10)
    for n in range(95):
        telling.tally.add({"quick": tries(0.1, tenant=f"tenant {n}")})
    telling.teller.write()
    assert value(conn, "select count(*) from dispatcher.tally where succeeded = 1") == 2 * 95
    assert value(conn, "select told from dispatcher.replica") == 10
    assert sums(conn)[0][3] == 95


def test_replicas_that_write_at_once_do_not_lock_each_other_out(dsn: str, conn: Connection) -> None:
    both = [Telling(dsn, conn, Tally()) for _ in range(2)]
    failures: list[BaseException] = []

    def write(telling: Telling, tenants: list[int]) -> None:
        try:
            for _ in range(20):
                for n in tenants:
                    telling.tally.add({"quick": tries(0.1, tenant=f"tenant {n}")})
                telling.teller.write()
        except psycopg.errors.LockNotAvailable:
            telling.teller.write()
        except psycopg.Error as exc:
            failures.append(exc)

    orders = [list(range(100)), list(reversed(range(100)))]
    threads = [threading.Thread(target=write, args=pair) for pair in zip(both, orders, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for telling in both:
        telling.teller.close()
    assert failures == []


@pytest.mark.parametrize("busy", [True, False])
def test_replica_writes_its_last_counts_as_it_stops_and_does_not_sleep_over_the_stop(
    dsn: str, conn: Connection, monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    for pause in ("WRITE_EVERY_S", "IDLE_S"):  # whoever sleeps over the stop sleeps long
        monkeypatch.setattr(f"dispatcher.services.teller.{pause}", 600.0)
    halt, looked = threading.Event(), threading.Event()
    replica = Replica(Settings.model_validate({"dsn": dsn}), Registry([QUICK]), NOWHERE, halt=halt)
    teller = replica.services["teller"]

    def serve() -> None:
        while not halt.is_set():
            looked.set()
            teller.step()
        teller.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert looked.wait(30.0)
    if busy:
        replica._tally.add({"quick": tries(0.1)})
    halt.set()
    replica.wake_all()
    thread.join(60.0)
    assert not thread.is_alive()
    assert sums(conn) == [(grain, "quick", "", 1, 0, 0, 0, 0) for grain in ("hour", "minute")][: 2 * busy]


def test_jobs_of_a_replica_that_is_gone_are_counted_by_who_rescues_them(dsn: str, conn: Connection) -> None:
    replica = Replica(Settings.model_validate({"dsn": dsn}), Registry([QUICK]), NOWHERE, halt=threading.Event())
    enqueue(conn, tenant="acme")
    enqueue(conn, tenant="acme", max_attempts=1)
    with session(dsn) as lease:
        claim(lease, tenant="acme", owner=(gone := register(conn)))
    rescuer = replica.services["rescuer"]
    assert isinstance(rescuer, Rescuer)
    rescuer._leading = lambda: True
    rescuer._orphan_after_s = 0.0
    rescuer.look()
    rescuer.look()
    rescuer.close()
    replica.services["teller"].close()
    assert value(conn, "select count(*) from dispatcher.replica where id = %s", gone) == 0
    assert sums(conn) == [(g, "quick", t, 0, 0, 1, 0, 1) for g in ("hour", "minute") for t in ("", "acme")]
    assert value(conn, "select array_agg(ran) from dispatcher.tally where ran <> '{}'") is None


# Reading.


def test_window_slides_over_the_period_that_is_partly_inside(conn: Connection) -> None:
    """At twenty seconds past, two thirds of the minute before are inside; so it is with hours."""
    with conn.transaction():
        now: datetime = value(conn, "select now()")
        minute, hour = now.replace(second=0, microsecond=0), now.replace(minute=0, second=0, microsecond=0)
        add(conn, "minute", minute, 3)
        add(conn, "minute", minute - timedelta(minutes=1), 600_000)
        add(conn, "minute", minute - timedelta(minutes=2), 7_000_000)
        add(conn, "minute", minute - timedelta(minutes=59), 10_000_000)
        add(conn, "minute", minute - timedelta(minutes=60), 100_000_000)
        add(conn, "minute", minute - timedelta(minutes=61), 10**12)
        add(conn, "hour", hour, 5, failed=2, partial=1, canceled=1, retried=9)
        add(conn, "hour", hour - timedelta(hours=23), 20_000)
        add(conn, "hour", hour - timedelta(hours=24), 3_000_000)
        add(conn, "hour", hour - timedelta(hours=25), 10**12)
        [found] = drive(conn, None)
    part = 1 - (now - minute).total_seconds() / 60
    assert found.minute.succeeded == found.minute.finished == round(3 + 600_000 * part)
    assert found.minute.rate == pytest.approx((3 + 600_000 * part) / 60)
    assert found.hour.finished == round(17_600_003 + 100_000_000 * part)
    part = 1 - (now - hour).total_seconds() / 3600
    day = found.day
    assert day.succeeded == round(20_005 + 3_000_000 * part)
    assert (day.failed, day.partial, day.canceled, day.retried) == (2, 1, 1, 9)
    assert day.rate == pytest.approx((20_009 + 3_000_000 * part) / 86_400)
    assert found.minute.duration is None
    assert found.minute.wait is None


def drive(conn: Connection, tenant: str | None) -> list[TypeStats]:
    """Inside the transaction of `conn`, and so with its now()."""
    return perform(conn, stats.read_stats(tenant))


def test_quantiles_are_of_all_periods_by_their_part_and_right_to_a_bucket(
    conn: Connection, client: Client, telling: Telling
) -> None:
    telling.tally.add({"quick": tries(*[0.01] * 90, *[0.2] * 8, *[30.0] * 2)})
    telling.teller.write()
    [found] = client.stats()
    for window in (found.minute, found.hour, found.day):
        assert window.duration is not None
        assert window.duration == window.wait
        for quantile, true in ((window.duration.p50, 0.01), (window.duration.p95, 0.2), (window.duration.p99, 30.0)):
            assert true / GROWTH <= quantile <= true * GROWTH
    with conn.transaction():
        began: datetime = value(conn, "select date_trunc('minute', now(), 'UTC')")
        conn.execute("delete from dispatcher.tally")
        add(conn, "minute", began, 0, ran=[0, 10], waited=[0, 0, 1])
        add(conn, "minute", began - timedelta(minutes=5), 0, ran=[0, 0, 0, 0, 10**6])
        [found] = drive(conn, None)
    assert found.minute.duration is not None
    assert BOUNDS[0] < found.minute.duration.p99 <= BOUNDS[1]
    assert found.hour.duration is not None
    assert BOUNDS[3] < found.hour.duration.p50 <= BOUNDS[4]
    assert found.hour.wait == found.minute.wait


def test_duration_and_wait_are_not_mixed_up(
    conn: Connection, client: Client, lease: Connection, settling: Settling, telling: Telling
) -> None:
    enqueue(conn)
    settling.settle(*(ran(one, run_s=0.3, wait_s=20.0) for one in claim(lease)))
    telling.teller.write()
    [found] = client.stats()
    assert found.minute.duration is not None
    assert found.minute.wait is not None
    assert 0.3 / GROWTH <= found.minute.duration.p50 <= 0.3 * GROWTH
    assert 20.0 / GROWTH <= found.minute.wait.p50 <= 20.0 * GROWTH


def test_tenant_sees_its_own_jobs_and_nobody_else_s(client: Client, telling: Telling) -> None:
    for tenant, count in (("acme", 2), ("other", 3), ("", 5)):
        telling.tally.add({"quick": tries(*[0.1] * count, tenant=tenant), "slow": tries(0.1, tenant="other")})
    telling.teller.write()

    def seen(tenant: str | None) -> dict[str, int]:
        return {one.type: one.day.finished for one in client.stats(tenant)}

    assert seen(None) == {"quick": 10, "slow": 3}
    assert seen("acme") == {"quick": 2}
    assert seen("other") == {"quick": 3, "slow": 3}
    assert seen("nobody") == {}
    bad: list[Any] = ["", "\0", "\ud800", 5, "x" * 201]
    for tenant in bad:
        with pytest.raises(InvalidOption, match="tenant"):
            client.stats(tenant)


def test_half_hour_zone_shifts_no_hour(dsn: str, client: Client, telling: Telling) -> None:
    """Whatever the zone of the session that reads, an hour begins where it began for the one that wrote."""
    telling.tally.add({"quick": tries(0.1)})
    telling.teller.write()
    with psycopg.connect(dsn, options="-c timezone=Asia/Kolkata") as own:
        assert [one.hour.finished for one in drive(own, None)] == [1]
        assert [one.day.finished for one in drive(own, None)] == [1]


def test_async_client_reads_the_same(dsn: str, client: Client, telling: Telling) -> None:
    telling.tally.add({"quick": tries(0.1, tenant="acme")})
    telling.teller.write()

    async def read() -> list[TypeStats]:
        async with AsyncClient(dsn) as own:
            return await own.stats("acme")

    found = asyncio.run(read())
    assert [(one.type, one.day.finished) for one in found] == [("quick", 1)]
    assert [one.day.finished for one in client.stats("acme")] == [1]


def test_command_line(dsn: str, telling: Telling) -> None:
    def run(*args: str) -> Result:
        env = {"DISPATCHER_DSN": dsn, "DATABASE_URL": None, "DISPATCHER_CONFIG": None}
        return CliRunner(env=env).invoke(main, ("type", "stats", *args), prog_name="dispatcher")

    assert run().exit_code == 0
    telling.tally.add({"quick": tries(*[0.1] * 6, end="failed", tenant="acme")})
    telling.teller.write()
    head, line = run("--window", "day").stdout.splitlines()
    assert head.split()[:2] == ["TYPE", "FINISHED"]
    assert line.split()[:2] == ["quick", "6"]
    assert line.count("ms /") == 4
    [shown] = json.loads(run("--json", "--tenant", "acme").stdout)
    assert (shown["type"], shown["day"]["failed"], shown["day"]["finished"]) == ("quick", 6, 6)
    assert shown["hour"]["duration"]["p50"] == pytest.approx(0.1, rel=0.6)
    assert run("--window", "week").exit_code == 2
    assert run("--tenant", "").exit_code == 1


# What it costs.


def test_reading_and_pruning_find_their_rows_by_the_key_and_touch_no_job(dsn: str, conn: Connection) -> None:
    conn.execute(
        """
        insert into dispatcher.tally (grain, at, type, tenant, succeeded, ran)
        select 'minute', date_trunc('minute', now(), 'UTC') - m * interval '1 minute', 'type ' || y, t, 1, '{1,2,3}'
        from generate_series(0, 119) m, generate_series(1, 3) y,
             (select '' union select 'tenant ' || generate_series(1, 200)) t (t)
        """
    )
    for stage in ("statistics of none", "statistics"):
        if stage == "statistics":
            conn.execute("analyze dispatcher.tally")
        makes: list[Callable[[], Connection]] = [lambda: psycopg.connect(dsn, autocommit=True), lambda: session(dsn)]
        for make in makes:
            with make() as own:
                for name, params in (("read_stats", {"tenant": ""}), ("prune_tallies", {"page": 2000})):
                    text, seen = explain(own, name, params)
                    assert "using tally_pkey on tally" in text.lower(), text
                    assert "Seq Scan on tally" not in text, text
                    assert " on job" not in text, text
                    assert "Index Cond: ((grain =" in text, text
                    # Of 72,000 rows: three types in 62 periods, each found by itself.
                    assert seen < 1_000, text


def explain(conn: Connection, name: str, params: dict[str, Any]) -> tuple[str, int]:
    """The plan, and how many pages it looked at."""
    text = b"explain (analyze, buffers, costs off, timing off) " + statement(name)
    lines = [line for (line,) in conn.execute(text, params)]
    pages = next(line for line in lines if "Buffers" in line)
    return "\n".join(lines), sum(
        int(part.partition("=")[2]) for part in pages.split() if "hit=" in part or "read=" in part
    )
