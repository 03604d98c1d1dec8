"""Schedules: at most one job for each due time, whoever leads; what is wrong is refused or shown."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from dispatcher import AsyncClient, Client
from dispatcher.cli import main
from dispatcher.errors import (
    InvalidOption,
    InvalidPayload,
    InvalidSchedule,
    PayloadTooLarge,
    ScheduleNotFound,
    UnknownType,
)
from dispatcher.metrics import Metrics
from dispatcher.queries.schedules import ScheduleInfo
from dispatcher.services.scheduler import BATCH, LONGEST_S, Scheduler
from tests.db.front_door import publish
from tests.db.linking import in_threads
from tests.db.running import open_transaction, session, value


class Scheduling:
    """A scheduler stepped by hand."""

    def __init__(self, dsn: str) -> None:
        self.fired = 0
        self.metrics = Metrics()
        self.scheduler = Scheduler(
            open_session=lambda: session(dsn),
            leading=lambda: True,
            fired=self._count,
            metrics=self.metrics,
            stop=threading.Event(),
        )

    def _count(self) -> None:
        self.fired += 1

    def fire(self) -> float:
        """Until nothing is due or can be done; how long it would wait."""
        while (wait := self.scheduler.turn()) == 0.0:
            pass
        return wait


@pytest.fixture
def client(dsn: str, conn: psycopg.Connection[Any]) -> Iterator[Client]:
    publish(conn)
    with Client(dsn) as made:
        yield made


@pytest.fixture
def scheduling(dsn: str) -> Iterator[Scheduling]:
    scheduling = Scheduling(dsn)
    yield scheduling
    scheduling.scheduler.close()


def info(client: Client, name: str = "s") -> ScheduleInfo:
    [found] = [one for one in client.schedules() if one.name == name]
    return found


def due(conn: psycopg.Connection[Any], ago: str, name: str = "s") -> None:
    """Its next due time was so long ago, on a whole minute."""
    conn.execute(
        "update dispatcher.schedule set next_at = date_trunc('minute', now()) - %s::interval where name = %s",
        (ago, name),
    )


def jobs(conn: psycopg.Connection[Any]) -> int:
    return int(value(conn, "select count(*) from dispatcher.job"))


def test_first_look_works_out_the_next_due_time(client: Client, scheduling: Scheduling) -> None:
    client.add_schedule("s", "30 4 * * *", "any", {"x": 1}, zone="Europe/Berlin", priority=3)
    assert info(client).next_at is None
    assert scheduling.fire() == LONGEST_S
    found = info(client)
    assert found.next_at is not None
    assert (found.zone, found.payload, found.options, found.catch_up) == (
        "Europe/Berlin",
        {"x": 1},
        {"priority": 3},
        "one",
    )
    assert found.next_at.astimezone().minute == 30


def test_due_time_is_fired_with_the_schedule_s_options(
    client: Client, conn: psycopg.Connection[Any], scheduling: Scheduling
) -> None:
    client.add_schedule("s", "* * * * *", "any", {"x": 1}, tenant="t", priority=3, timeout="5s")
    scheduling.fire()
    due(conn, "0")
    wait = scheduling.fire()
    assert wait <= LONGEST_S
    [job] = client.list()
    assert (job.payload, job.tenant, job.priority, job.timeout.total_seconds()) == ({"x": 1}, "t", 3, 5)
    found = info(client)
    assert (found.last_at, found.last_job_id) == (job.run_at, job.id)
    assert found.next_at is not None
    assert (found.next_at - job.run_at).total_seconds() == 60
    assert scheduling.fired == 1
    assert scheduling.metrics.registry.get_sample_value("dispatcher_schedules_fired_total", {"type": "any"}) == 1


def test_two_leaders_at_the_same_second_fire_once(
    dsn: str, client: Client, conn: psycopg.Connection[Any], scheduling: Scheduling
) -> None:
    other = Scheduling(dsn)
    client.add_schedule("s", "0 0 1 1 *", "any")
    scheduling.fire()
    other.fire()
    for turn in range(1, 21):
        due(conn, "0")
        in_threads(scheduling.fire, other.fire)
        assert jobs(conn) == turn
    other.scheduler.close()


@pytest.mark.parametrize(("policy", "expected"), [("skip", 0), ("one", 1), ("all", 61)])
def test_missed_due_times_by_policy(
    client: Client, conn: psycopg.Connection[Any], scheduling: Scheduling, policy: str, expected: int
) -> None:
    client.add_schedule("s", "* * * * *", "any", catch_up=policy)
    due(conn, "60 min")
    if policy == "skip":  # but for what is due in this very minute
        client.add_schedule("s", "0 0 1 1 *", "any", catch_up=policy)
        due(conn, "60 min")
    scheduling.fire()
    assert jobs(conn) in (expected, expected + (policy == "all"))  # a minute may pass meanwhile
    assert value(conn, "select count(distinct run_at) = count(*) from dispatcher.job")


def test_all_are_caught_up_in_order_and_bit_by_bit(
    client: Client, conn: psycopg.Connection[Any], scheduling: Scheduling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.cron.MOST_AT_ONCE", 7)
    client.add_schedule("s", "* * * * *", "any", catch_up="all")
    due(conn, "30 min")
    scheduling.fire()
    rows = conn.execute("select run_at from dispatcher.job order by id").fetchall()
    assert rows == sorted(rows)
    assert len({at for (at,) in rows}) == len(rows) >= 31


def test_very_many_that_are_catching_up_keep_no_other_waiting(
    client: Client, conn: psycopg.Connection[Any], scheduling: Scheduling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.cron.MOST_AT_ONCE", 2)
    for number in range(BATCH + 5):
        client.add_schedule(
            f"late{number}", "0 0 1 1 *", "any", catch_up="all"
        )  # by the minute, one might be due by now
    client.add_schedule("timely", "0 0 1 1 *", "any", {"name": "timely"})
    scheduling.fire()
    conn.execute("update dispatcher.schedule set next_at = date_trunc('year', now()) - interval '5 years'")
    due(conn, "0", "timely")
    for _ in range(2):
        scheduling.scheduler.turn()
    assert [job.payload for job in client.list()] == [{"name": "timely"}]
    scheduling.scheduler.turn()
    assert jobs(conn) == 1 + 2  # a bit of it
    due(conn, "0", "timely")
    scheduling.scheduler.turn()
    assert value(conn, "select count(*) from dispatcher.job where payload ? 'name'") == 2
    scheduling.fire()
    assert value(conn, "select bool_and(next_at > now() - interval '1 min') from dispatcher.schedule")
    assert jobs(conn) >= 2 + 6 * (BATCH + 5)


def test_one_that_was_held_is_fired_while_others_are_catching_up(
    dsn: str, client: Client, conn: psycopg.Connection[Any], scheduling: Scheduling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.cron.MOST_AT_ONCE", 2)
    client.add_schedule("held", "0 0 1 1 *", "any", {"name": "held"})
    client.add_schedule("late", "* * * * *", "any", catch_up="all")
    scheduling.fire()
    due(conn, "60 min", "late")
    due(conn, "0", "held")
    with open_transaction(dsn, "select from dispatcher.schedule where name = 'held' for update") as holder:
        for _ in range(6):
            scheduling.scheduler.turn()
        assert 0 < jobs(conn) < 60
        holder.rollback()
    for _ in range(3):
        scheduling.scheduler.turn()
    assert value(conn, "select count(*) from dispatcher.job where payload ? 'name'") == 1
    assert jobs(conn) < 60


def test_one_that_is_removed_while_it_catches_up_is_forgotten(
    client: Client, conn: psycopg.Connection[Any], scheduling: Scheduling
) -> None:
    client.add_schedule("s", "* * * * *", "any", catch_up="all")
    due(conn, "5 min")
    assert scheduling.scheduler.turn() == 0.0
    client.remove_schedule("s")
    assert scheduling.fire() == LONGEST_S
    assert jobs(conn) == 0


def test_schedule_that_a_user_holds_is_passed_by(
    dsn: str, client: Client, conn: psycopg.Connection[Any], scheduling: Scheduling
) -> None:
    for name in ("held", "free"):
        client.add_schedule(name, "0 0 1 1 *", "any", {"name": name})
    scheduling.fire()
    due(conn, "0", "held")
    due(conn, "0", "free")
    with open_transaction(dsn, "select from dispatcher.schedule where name = 'held' for update") as holder:
        assert scheduling.fire() < 1.0  # and looks again soon
        assert [job.payload for job in client.list()] == [{"name": "free"}]
        holder.rollback()
    scheduling.fire()
    assert jobs(conn) == 2


def test_very_many_that_a_user_holds_are_passed_by(
    dsn: str, client: Client, conn: psycopg.Connection[Any], scheduling: Scheduling
) -> None:
    for number in range(BATCH):
        client.add_schedule(f"held{number}", "0 0 1 1 *", "any")
    client.add_schedule("free", "0 0 1 1 *", "any", {"name": "free"})
    scheduling.fire()
    conn.execute("update dispatcher.schedule set next_at = date_trunc('minute', now()) - interval '1 minute'")
    due(conn, "0", "free")
    with open_transaction(dsn, "select from dispatcher.schedule where name like 'held%' for update") as holder:
        assert scheduling.fire() < 1.0  # and looks again soon
        assert [job.payload for job in client.list()] == [{"name": "free"}]
        holder.rollback()
    scheduling.fire()
    assert jobs(conn) == BATCH + 1


def test_wrong_schedule_that_a_user_holds_does_not_keep_the_leader_busy(
    dsn: str, client: Client, conn: psycopg.Connection[Any], scheduling: Scheduling
) -> None:
    conn.execute("select dispatcher.add_schedule('s', '0 0 30 2-2 *', 'any')")  # SQL cannot know
    with open_transaction(dsn, "select from dispatcher.schedule for update"):
        assert [scheduling.scheduler.turn() > 0.0 for _ in range(4)] == [False, True, False, True]
    scheduling.fire()
    assert "Bad day-of-month" in str(info(client).error)


def test_open_transaction_with_the_unique_key_holds_up_that_schedule_alone(
    dsn: str, client: Client, conn: psycopg.Connection[Any], scheduling: Scheduling
) -> None:
    client.add_schedule("first", "0 0 1 1 *", "any", {"n": 1}, unique_key="nightly")
    client.add_schedule("second", "0 0 1 1 *", "any", {"n": 2})
    scheduling.fire()
    due(conn, "1 min", "first")
    due(conn, "0", "second")
    with psycopg.connect(dsn) as own:
        client.enqueue("any", unique_key="nightly", conn=own)
        assert scheduling.fire() < 1.0  # and looks again soon
        assert [job.payload for job in client.list()] == [{"n": 2}]
        own.rollback()
    scheduling.fire()
    assert jobs(conn) == 2


def test_error_of_somebody_s_trigger_stops_that_schedule_alone(
    client: Client, conn: psycopg.Connection[Any], scheduling: Scheduling
) -> None:
    conn.execute("create function no() returns trigger language plpgsql as $$ begin raise 'not today'; end $$")
    conn.execute(
        "create trigger no before insert on dispatcher.job for each row when (new.tenant = 'x') execute function no()"
    )
    client.add_schedule("first", "0 0 1 1 *", "any", tenant="x")
    client.add_schedule("second", "0 0 1 1 *", "any")
    scheduling.fire()
    due(conn, "1 min", "first")
    due(conn, "0", "second")
    scheduling.fire()
    assert info(client, "first").error == "not today"
    assert jobs(conn) == 1


def test_trouble_with_one_keeps_no_other_waiting(
    client: Client, conn: psycopg.Connection[Any], scheduling: Scheduling
) -> None:
    """Such as a trigger that misses a table: it may as well be an upgrade half done, so nothing is stopped for good."""
    conn.execute(
        "create function no() returns trigger language plpgsql as $$ begin delete from nowhere; return new; end $$"
    )
    conn.execute(
        "create trigger no before insert on dispatcher.job for each row when (new.tenant = 'x') execute function no()"
    )
    client.add_schedule("first", "0 0 1 1 *", "any", tenant="x")
    client.add_schedule("second", "0 0 1 1 *", "any")
    scheduling.fire()
    due(conn, "1 min", "first")
    due(conn, "0", "second")
    with pytest.raises(psycopg.errors.UndefinedTable):  # told by the thread around it, which tries again later
        scheduling.fire()
    assert jobs(conn) == 1
    conn.execute("drop trigger no on dispatcher.job")
    scheduling.fire()
    assert jobs(conn) == 2
    assert info(client, "first").error is None


def test_due_time_between_adding_and_the_first_look_is_not_lost(
    client: Client, conn: psycopg.Connection[Any], scheduling: Scheduling
) -> None:
    client.add_schedule("s", "* * * * *", "any")
    conn.execute("update dispatcher.schedule set since = since - interval '90 s'")  # nobody led meanwhile
    scheduling.fire()
    assert jobs(conn) == 1


def test_clock_that_goes_back_fires_nothing_twice(
    client: Client, conn: psycopg.Connection[Any], scheduling: Scheduling
) -> None:
    client.add_schedule("s", "* * * * *", "any")
    conn.execute("update dispatcher.schedule set last_at = now() + interval '10 min', next_at = null")
    scheduling.fire()
    assert value(conn, "select next_at > last_at from dispatcher.schedule")
    assert jobs(conn) == 0


def test_clock_that_was_years_ahead_does_not_stop_a_schedule_for_good(
    client: Client, conn: psycopg.Connection[Any], scheduling: Scheduling
) -> None:
    ahead = (
        "update dispatcher.schedule set last_at = now() + interval '70 years', next_at = now() + interval '70 years'"
    )
    client.add_schedule("s", "* * * * *", "any")
    conn.execute(ahead)
    client.pause_schedule("s")
    client.resume_schedule("s")
    scheduling.fire()
    assert value(conn, "select next_at < now() + interval '2 min' from dispatcher.schedule")
    conn.execute(ahead)
    client.add_schedule("s", "*/2 * * * *", "any")
    scheduling.fire()
    assert value(conn, "select next_at < now() + interval '3 min' from dispatcher.schedule")


def test_unique_key_keeps_runs_from_piling_up(
    client: Client, conn: psycopg.Connection[Any], scheduling: Scheduling
) -> None:
    client.add_schedule("s", "0 0 1 1 *", "any", unique_key="nightly")
    for _ in range(3):
        scheduling.fire()
        due(conn, "0")
    scheduling.fire()
    [job] = client.list()
    assert info(client).last_job_id == job.id
    fired = scheduling.metrics.registry.get_sample_value("dispatcher_schedules_fired_total", {"type": "any"})
    assert fired == 1, "jobs that it enqueued"


def test_pause_resume_and_trigger(client: Client, conn: psycopg.Connection[Any], scheduling: Scheduling) -> None:
    client.add_schedule("s", "0 0 1 1 *", "any")
    scheduling.fire()
    due(conn, "2 min")
    assert client.pause_schedule("s")
    assert not client.pause_schedule("s")
    scheduling.fire()
    assert jobs(conn) == 0
    id = client.trigger_schedule("s")
    assert client.get(id).type == "any"
    assert info(client).last_at is None
    assert client.resume_schedule("s")
    assert not client.resume_schedule("s")
    scheduling.fire()
    assert jobs(conn) == 1  # what was due meanwhile is not caught up
    assert info(client).next_at is not None


@pytest.mark.parametrize(
    "acts",
    [
        "select dispatcher.remove_schedule('s'), dispatcher.add_schedule('s', '* * * * *', 'any')",
        "select dispatcher.add_schedule('s', '*/2 * * * *', 'any')",
        "select dispatcher.pause_schedule('s'), dispatcher.resume_schedule('s')",
    ],
)
def test_long_transaction_counts_from_its_change_and_not_from_its_start(
    dsn: str, client: Client, conn: psycopg.Connection[Any], acts: str
) -> None:
    """What was due before has been fired, or fell into the pause."""
    client.add_schedule("s", "* * * * *", "any")
    with psycopg.connect(dsn) as own:
        own.execute("select now()")  # begins
        between = value(conn, "select clock_timestamp()")
        own.execute(acts)
    assert value(conn, "select since from dispatcher.schedule") > between


def test_change_keeps_the_due_time_unless_the_calendar_changes(
    client: Client, conn: psycopg.Connection[Any], scheduling: Scheduling
) -> None:
    client.add_schedule("s", "0 0 1 1 *", "any", {"x": 1})
    scheduling.fire()
    planned = info(client).next_at
    client.add_schedule("s", "0 0 1 1 *", "any", {"x": 2})
    assert (info(client).next_at, info(client).payload) == (planned, {"x": 2})
    client.add_schedule("s", "0 0 1 1 *", "any", zone="Asia/Tokyo")
    assert info(client).next_at is None
    scheduling.fire()
    assert info(client).next_at != planned
    client.remove_schedule("s")
    assert client.schedules() == []
    scheduling.fire()
    assert jobs(conn) == 0


@pytest.mark.parametrize(
    "change",
    [
        "select dispatcher.add_schedule('s', '0 0 1 1 *', 'any')",
        "select dispatcher.pause_schedule('s')",
        "update dispatcher.schedule set error = 'a former leader stopped it'",
    ],
)
def test_change_beside_the_firing_is_not_overwritten(
    client: Client,
    conn: psycopg.Connection[Any],
    scheduling: Scheduling,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    """It is changed between the leader's look and its statement: nothing is fired by what no longer holds."""
    client.add_schedule("s", "* * * * *", "any")
    due(conn, "0")
    look, after_change = scheduling.scheduler._handle, []

    def change_first(own: Any, found: Any) -> bool:
        conn.execute(change.encode())
        after_change.append(info(client))
        monkeypatch.undo()
        return look(own, found)

    monkeypatch.setattr(scheduling.scheduler, "_handle", change_first)
    scheduling.fire()
    assert jobs(conn) == 0
    [changed] = after_change
    assert replace(info(client), next_at=None) == replace(changed, next_at=None)


def test_change_beside_an_error_is_not_stopped_by_it(
    client: Client, conn: psycopg.Connection[Any], scheduling: Scheduling, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.add_schedule("s", "0 0 1 1 *", "import", {"into": "t"})
    conn.execute("delete from dispatcher.type where name = 'import'")
    due(conn, "0")
    stop = scheduling.scheduler._stop_schedule

    def mend(own: Any, found: Any, reason: str) -> bool:
        client.add_schedule("s", "0 0 1 1 *", "any")
        return stop(own, found, reason)

    monkeypatch.setattr(scheduling.scheduler, "_stop_schedule", mend)
    scheduling.fire()
    scheduling.fire()
    assert info(client).error is None
    assert jobs(conn) == 1


def test_what_sql_let_pass_is_shown_and_a_change_mends_it(
    client: Client, conn: psycopg.Connection[Any], scheduling: Scheduling
) -> None:
    conn.execute("select dispatcher.add_schedule('s', '0 0 30 2-2 *', 'any')")
    client.add_schedule("good", "* * * * *", "any")
    scheduling.fire()
    assert "cron expression '0 0 30 2-2 *'" in (info(client).error or "")
    assert info(client, "good").next_at is not None
    scheduling.fire()
    assert scheduling.metrics.registry.get_sample_value("dispatcher_schedule_errors") == 1
    client.add_schedule("s", "0 0 28 2 *", "any")
    scheduling.fire()
    assert info(client).error is None
    assert info(client).next_at is not None


def test_type_that_is_gone_stops_its_schedule_alone(
    client: Client, conn: psycopg.Connection[Any], scheduling: Scheduling
) -> None:
    client.add_schedule("s", "* * * * *", "import", {"into": "t"})
    client.add_schedule("good", "* * * * *", "any")
    conn.execute("delete from dispatcher.type where name = 'import'")
    due(conn, "0")
    due(conn, "0", "good")
    scheduling.fire()
    assert "unknown job type 'import'" in (info(client).error or "")
    assert jobs(conn) == 1
    publish(conn)
    assert client.resume_schedule("s")
    scheduling.fire()
    assert info(client).error is None


BAD_CRON = [
    "* * * *",
    "60 * * * *",
    "* 24 * * *",
    "* * 32 * *",
    "* * * 13 *",
    "* * * * 8",
    "*/0 * * * *",
    "5-1 * * * *",
]
BAD_CRON += ["a * * * *", "* * * FOO *", "@daily", "", "1,,2 * * * *", "* * * * MON#6", "1-2-3 * * * *", "* * LX * *"]
BAD_CRON += ["0 0 30 2 *", "0 0 30,31 feb *", "0 0 31 4,6,SEP *", "0 0 30-31 02 */2", "\t0 0 * *", "0 0 * *\t"]
BAD_CRON += ["* * L/2 * *", "* * 1,lw/1 * *", "*/10000 * * * *", "0 0 1 1-2/99999 *"]
BAD_CRON += ["0 0 * * " + ",".join(["1"] * 500)]


@pytest.mark.parametrize("cron", BAD_CRON)
def test_bad_cron_is_refused_by_every_door(client: Client, conn: psycopg.Connection[Any], cron: str) -> None:
    with pytest.raises(psycopg.Error, match="cron expression") as caught:
        conn.execute("select dispatcher.add_schedule('s', %s, 'any')", (cron,))
    assert caught.value.sqlstate == "DJ011"
    with pytest.raises(InvalidSchedule, match="cron expression"):
        client.add_schedule("s", cron, "any")
    assert client.schedules() == []


GOOD_CRON = [
    "* * * * *",
    "*/15 0-6,22 1,15 JAN-MAR mon-fri",
    "5/10 * * * *",
    "0 0 LW * *",
    "0 0 L * *",
    "0 0 * * 5L",
    "0 0 * * MON#2",
    "0 0 * * 7",
    "0 0 30 2 MON",
    "0 0 29,30 2 *",
    "0 0 31 2,3 *",
    "0 0 30 4 *",
]


@pytest.mark.parametrize("cron", GOOD_CRON)
def test_good_cron_is_taken_by_every_door(client: Client, conn: psycopg.Connection[Any], cron: str) -> None:
    conn.execute("select dispatcher.add_schedule('sql', %s, 'any')", (cron,))
    client.add_schedule("python", cron, "any")
    assert len(client.schedules()) == 2


@pytest.mark.parametrize(
    ("args", "options", "kind", "state", "told"),
    [
        (("s", "* * * * *", "any"), {"zone": "Mars/Olympus"}, InvalidSchedule, "DJ011", "there is no time zone"),
        (("s", "* * * * *", "nix"), {}, UnknownType, "DJ001", "unknown job type 'nix'"),
        (("bad name", "* * * * *", "any"), {}, InvalidSchedule, "DJ011", "a schedule is named by"),
        (("s", "* * * * *", "any"), {"catch_up": "two"}, InvalidOption, "DJ004", "'catch_up' must be"),
        (("s", "* * * * *", "any"), {"delay": 5}, InvalidOption, "DJ004", "'delay' makes no sense"),
        (("s", "* * * * *", "any"), {"after": 1}, InvalidOption, "DJ004", "'after' makes no sense"),
        (("s", "* * * * *", "any"), {"nix": 1}, InvalidOption, "DJ004", "unknown option 'nix'"),
        (("s", "* * * * *", "any"), {"priority": 99999}, InvalidOption, "DJ004", "whole number"),
    ],
)
def test_bad_schedule_writes_nothing(
    client: Client, conn: psycopg.Connection[Any], args: Any, options: Any, kind: Any, state: str, told: str
) -> None:
    with pytest.raises(kind, match=told):
        client.add_schedule(*args, **options)
    with pytest.raises(psycopg.Error, match=told) as caught:
        conn.execute("select dispatcher.add_schedule(%s, %s, %s, '{}', %s::jsonb)", (*args, json.dumps(options)))
    assert caught.value.sqlstate == state
    assert client.schedules() == []


@pytest.mark.parametrize("name", ["\0", "\ud800", "no such", "", None, 5])
def test_name_that_no_schedule_can_have(client: Client, name: Any) -> None:
    with pytest.raises(InvalidSchedule, match="a schedule is named by"):
        client.add_schedule(name, "* * * * *", "any")
    for act in (client.remove_schedule, client.pause_schedule, client.resume_schedule, client.trigger_schedule):
        with pytest.raises(ScheduleNotFound, match="there is no schedule"):
            act(name)


@pytest.mark.parametrize("policy", ["\0", "\ud800", 5])
def test_policy_that_does_not_exist(client: Client, policy: Any) -> None:
    with pytest.raises(InvalidOption, match="'catch_up' must be"):
        client.add_schedule("s", "* * * * *", "any", catch_up=policy)


def test_payload_is_checked_when_the_schedule_is_added(client: Client) -> None:
    with pytest.raises(InvalidPayload, match="does not fit"):
        client.add_schedule("s", "* * * * *", "import", {"rows": 5})
    with pytest.raises(InvalidPayload, match="must be a JSON object"):
        client.add_schedule("s", "* * * * *", "any", [])
    with pytest.raises(PayloadTooLarge):
        client.add_schedule("s", "* * * * *", "any", {"x": "y" * 2000})
    for act in (client.remove_schedule, client.pause_schedule, client.resume_schedule, client.trigger_schedule):
        with pytest.raises(ScheduleNotFound, match="there is no schedule 'nix'"):
            act("nix")
    assert client.schedules() == []


def test_async_client_schedules(dsn: str, client: Client) -> None:
    async def body() -> None:
        async with AsyncClient(dsn) as own:
            await own.add_schedule("s", "* * * * *", "any", zone="Europe/Berlin", catch_up="skip")
            assert [one.name for one in await own.schedules()] == ["s"]
            assert await own.pause_schedule("s")
            assert await own.resume_schedule("s")
            assert (await own.get(await own.trigger_schedule("s"))).type == "any"
            await own.remove_schedule("s")

    asyncio.run(body())
    assert client.schedules() == []


@pytest.fixture
def run(dsn: str, client: Client) -> Callable[..., Result]:
    env = {"DISPATCHER_DSN": dsn, "DATABASE_URL": None, "DISPATCHER_CONFIG": None}
    return lambda *args, **kwargs: CliRunner(env=env).invoke(main, args, prog_name="dispatcher", **kwargs)


def test_command_line(run: Callable[..., Result], client: Client, scheduling: Scheduling) -> None:
    added = run("schedule", "add", "s", "30 4 * * *", "any", '{"x": 1}', "--zone", "Europe/Berlin", "--priority", "-5")
    assert added.stdout == "s: 30 4 * * * (Europe/Berlin)\n"
    scheduling.fire()
    row = run("schedule", "list").stdout.splitlines()[1]
    assert row.startswith("s     30 4 * * *  Europe/Berlin  any   in ")
    assert run("schedule", "pause", "s").stdout == "paused\n"
    assert "paused by app" in run("schedule", "list").stdout
    assert run("schedule", "resume", "s").stdout == "resumed\n"
    id = int(run("schedule", "trigger", "s").stdout)
    assert client.get(id).priority == -5
    [shown] = json.loads(run("schedule", "list", "--json").stdout)
    assert shown["cron"] == "30 4 * * *"
    assert run("schedule", "remove", "s").stdout == "removed\n"
    assert client.schedules() == []


@pytest.mark.parametrize(
    ("args", "status", "told"),
    [
        (("add", "s", "* * *", "any"), 1, "five fields"),
        (("add", "s", "* * * * *", "any", "--zone", "X/Y"), 1, "there is no time zone"),
        (("add", "s", "* * * * *", "nix"), 1, "unknown job type 'nix'"),
        (("add", "s", "* * * * *", "any", "[]"), 1, "must be a JSON object"),
        (("add", "s", "* * * * *", "any", "--catch-up", "two"), 2, "--catch-up"),
        (("remove", "nix"), 1, "there is no schedule 'nix'"),
        (("trigger", "nix"), 1, "there is no schedule 'nix'"),
    ],
)
def test_command_line_refuses_in_one_line(
    run: Callable[..., Result], client: Client, args: tuple[str, ...], status: int, told: str
) -> None:
    result = run("schedule", *args)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (status, "", 1)
    assert told in result.stderr
    assert client.schedules() == []


def test_command_line_says_that_somebody_removed_it_at_once(
    run: Callable[..., Result], client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Client.add_schedule

    def add_and_lose(own: Client, *args: Any, **options: Any) -> None:
        add(own, *args, **options)
        client.remove_schedule("s")

    monkeypatch.setattr(Client, "add_schedule", add_and_lose)
    result = run("schedule", "add", "s", "* * * * *", "any")
    assert (result.exit_code, result.stderr) == (1, "Error: there is no schedule 's'\n")
