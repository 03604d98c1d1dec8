"""Random operations through random front doors, and a fleet that claims, settles and crashes, against a pure model.

After each step every job must be as the model has it. `HYPOTHESIS_PROFILE=long` looks for minutes, with new seeds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from dispatcher import Callback
from dispatcher.errors import DispatcherError
from dispatcher.executor import Cancel, Executor, Fail, Partial, Retry, Snooze
from dispatcher.inflight import Execution
from dispatcher.job import CancelReason
from dispatcher.outcome import Raised, Returned, settle
from dispatcher.retry import Backoff, RetryPolicy
from tests.db.front_doors import DATABASE_DOORS, DOORS, CommandRefused, opened
from tests.db.job_fleet import Fleet, Member
from tests.db.job_model import AGAIN, FINAL, OPEN, Model, ModelJob, Refused, Schedule
from tests.db.running import as_job, nothing, publish, value
from tests.db.serving import Served

PROFILES = {
    "quick": settings(derandomize=True, max_examples=30, stateful_step_count=40),
    "long": settings(max_examples=300, stateful_step_count=60, print_blob=True),
}
PROFILE = settings(
    PROFILES[os.environ.get("HYPOTHESIS_PROFILE", "quick")],
    deadline=None,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=[*HealthCheck],
)

HOUR_S = 3600.0
POLICY = RetryPolicy(max_attempts=3, backoff=Backoff(initial_s=HOUR_S, jitter=0.0))
PLAIN = Executor("plain", nothing, "tests.plain", retry=POLICY)
LIMITED = Executor("limited", nothing, "tests.limited", retry=POLICY, limit=2)
SHARED = Executor("shared", nothing, "tests.shared", retry=POLICY, tenant_limit=1)
TYPES = {spec.type: spec for spec in (PLAIN, LIMITED, SHARED)}
EMPTIED = (
    "truncate dispatcher.job, dispatcher.batch, dispatcher.dependency, dispatcher.follow_up, dispatcher.claim,"
    " dispatcher.control, dispatcher.schedule, dispatcher.throttle, dispatcher.tally; delete from dispatcher.replica"
)
ROWS = (
    "select id, type, tenant, state, priority, attempt, failures, payload, result, unique_key, parent_id, owner,"
    " errors, cancel_requested, finished_at is not null as finished, run_at > now() as later from dispatcher.jobs"
)

# How an attempt ends: what the executor does, what becomes of the job, whether that is a failure, the errors' kinds.
ENDS: dict[str, tuple[Any, str, bool, list[str]]] = {
    "succeed": (Returned({"ok": [1, "\u2028é"]}), "succeeded", False, []),
    "nothing": (Returned(None), "succeeded", False, []),
    "partial": (Returned(Partial({"n": 1}, [{"item": 7, "message": "x"}])), "partial", False, ["item"]),
    "error": (Raised(ValueError("a%s;--$1")), "scheduled", True, ["exception"]),
    "retry": (Raised(Retry(0)), "pending", True, ["retry"]),
    "snooze": (Raised(Snooze(HOUR_S)), "scheduled", False, []),
    "fail": (Raised(Fail("no")), "failed", True, ["fail"]),
    "cancel": (Raised(Cancel()), "canceled", False, []),
}

doors = st.sampled_from(DOORS)
database_doors = st.sampled_from(DATABASE_DOORS)
types = st.sampled_from(sorted(TYPES))
names = st.sampled_from(["s", "t.u"])
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=3)
payloads = st.dictionaries(texts, st.none() | st.booleans() | st.integers(-9, 9) | texts | st.just(0.5), max_size=2)
options = st.fixed_dictionaries(
    {},
    optional={
        "priority": st.integers(-1, 1),
        "tenant": st.sampled_from(["x", "ÿ'"]),
        "max_attempts": st.integers(1, 3),
        "when": st.sampled_from(["past", "delay", "future"]),
    },
)
states = st.lists(st.sampled_from(AGAIN), min_size=1, unique=True)


class World:
    """One database for all examples, its doors and its fleet."""

    def __init__(self, dsn: str, conn: psycopg.Connection[Any], doors: dict[str, Any]) -> None:
        self.dsn, self.conn, self.doors = dsn, conn, doors
        self.fleet = Fleet(dsn, conn, [*TYPES.values()])

    def empty(self) -> None:
        """As good as new."""
        for statement in EMPTIED.split("; "):
            self.conn.execute(statement.encode())
        self.fleet.begin()

    def rows(self, query: str) -> list[dict[str, Any]]:
        """What a query answers."""
        with self.conn.cursor(row_factory=psycopg.rows.dict_row) as cursor:
            return cursor.execute(query.encode()).fetchall()

    def callback_of(self, batch: int) -> int:
        """Its latest callback."""
        return int(value(self.conn, "select callback_id from dispatcher.batches where id = %s", batch))


@pytest.fixture
def world(dsn: str, conn: psycopg.Connection[Any]) -> Iterator[World]:
    publish(conn, *TYPES.values())
    with ExitStack() as stack:
        served = stack.enter_context(Served(dsn))
        world = World(dsn, conn, stack.enter_context(opened(dsn, served)))
        stack.callback(world.fleet.close)
        yield world


def told(act: Callable[[], Any]) -> Any:
    """What it answered, or which error it was."""
    try:
        return act()
    except Refused as exc:
        return f"refused: {exc}"
    except DispatcherError as exc:
        return f"refused: {type(exc).__name__}"


def agree(got: Any, want: Any) -> bool:
    """Whether a door answered as the model; True if it was no refusal."""
    if got == f"refused: {CommandRefused.__name__}" and str(want).startswith("refused"):
        return False
    assert got == want
    return not str(got).startswith("refused")


def sent(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options as a door takes them, and as the model does."""
    ours, theirs = dict(given), dict(given)
    match ours.pop("when", None):
        case "past":
            ours["run_at"] = datetime.now(UTC) - timedelta(hours=1)
        case "delay":
            ours["delay"], theirs["later"] = HOUR_S, True
        case "future":
            ours["run_at"], theirs["later"] = datetime.now(UTC) + timedelta(hours=1), True
    return ours, theirs


class Jobs(RuleBasedStateMachine):
    """What people and the fleet may do."""

    world: World
    jobs = Bundle("jobs")
    batches = Bundle("batches")

    def __init__(self) -> None:
        super().__init__()
        self.model = Model(limits={"limited": 2}, tenant_limits={"shared": 1})
        self.attempts: set[tuple[int, int]] = set()
        self.world.empty()

    def door(self, name: str) -> Any:
        return self.world.doors[name]

    # People enqueue.

    @rule(
        target=jobs,
        door=doors,
        type=types,
        payload=payloads,
        given=options,
        key=st.sampled_from([None, None, "k", "%s"]),
    )
    def enqueue(self, door: str, type: str, payload: Any, given: dict[str, Any], key: str | None) -> Any:
        return self._enqueue(door, type, payload, given if key is None else given | {"unique_key": key})

    @rule(
        target=jobs, door=doors, type=types, given=options, after=st.lists(jobs, min_size=1, max_size=2, unique=True),
        on_failure=st.sampled_from([None, "cancel", "run"]), same_tenant=st.sampled_from([True, True, True, False]),
    )  # fmt: skip
    def enqueue_after(
        self, door: str, type: str, given: dict[str, Any], after: list[int], on_failure: str | None, same_tenant: bool
    ) -> Any:
        given = given | {"after": after} | ({} if on_failure is None else {"on_failure": on_failure})
        return self._enqueue(door, type, {}, self._of_same_tenant(given, after[0]) if same_tenant else given)

    @rule(
        target=jobs, door=doors, type=types, given=options, parent=st.one_of(batches, batches, jobs),
        after=st.lists(jobs, max_size=1),
    )  # fmt: skip
    def join(self, door: str, type: str, given: dict[str, Any], parent: int, after: list[int]) -> Any:
        given = self._of_same_tenant(given, parent) | {"parent": parent} | ({"after": after} if after else {})
        return self._enqueue(door, type, {}, given)

    @rule(target=jobs, door=doors, type=types, many=st.lists(payloads, min_size=1, max_size=3), given=options)
    def enqueue_many(self, door: str, type: str, many: list[Any], given: dict[str, Any]) -> Any:
        ours, theirs = sent(given)
        got = told(lambda: self.door(door).enqueue_many(type, many, **ours))
        assert got == told(lambda: self.model.enqueue_many(got, type, many, **theirs))
        return multiple(*got)

    @rule(
        target=jobs, door=doors, type=types, many=st.lists(payloads, min_size=1, max_size=3), given=options,
        callback=st.none() | st.tuples(types, payloads), after=st.lists(jobs, max_size=1),
    )  # fmt: skip
    def enqueue_batch(
        self, door: str, type: str, many: list[Any], given: dict[str, Any], callback: Any, after: list[int]
    ) -> Any:
        given = self._of_same_tenant(given, after[0]) | {"after": after} if after else given
        ours, theirs = sent(given)
        wanted = None if callback is None else Callback(*callback)
        got = told(lambda: self.door(door).batch(type, many, callback=wanted, **ours))
        refused = isinstance(got, str)
        children = [] if refused else [row["id"] for row in self.world.rows(
            f"select id from dispatcher.job where parent_id = {got} order by id")]  # fmt: skip
        back = None if refused or callback is None else self.world.callback_of(got)
        want = told(lambda: self.model.enqueue_batch(got, children, back, type, many, callback, **theirs))
        if not agree(got, want if refused else got) or want is not None:
            assert refused, want
            return multiple()
        return multiple(got, got, *children, *filter(None, [back]))

    @rule(target=batches, job=jobs)
    def name_batch(self, job: int) -> Any:
        found = self.model.jobs.get(job)
        return job if found and found.batch else multiple()

    def _enqueue(self, door: str, type: str, payload: Any, given: dict[str, Any]) -> Any:
        ours, theirs = sent(given)
        got = told(lambda: tuple(self.door(door).enqueue_unique(type, payload, **ours)))
        ids = [] if isinstance(got, str) else got[:1]
        return got[0] if agree(got, told(lambda: self.model.enqueue(ids, type, payload, **theirs))) else multiple()

    def _of_same_tenant(self, given: dict[str, Any], id: int) -> dict[str, Any]:
        found = self.model.jobs.get(id)
        others = {name: value for name, value in given.items() if name != "tenant"}
        return others | ({"tenant": found.tenant} if found and found.tenant else {})

    # People interfere.

    @rule(door=doors, job=jobs)
    def cancel(self, door: str, job: int) -> None:
        agree(told(lambda: self.door(door).cancel(job)), told(lambda: self.model.cancel(job)))

    @rule(door=doors, job=jobs)
    def retry(self, door: str, job: int) -> None:
        got = told(lambda: self.door(door).retry(job))
        agree(got, told(lambda: self.model.retry(job, self.world.callback_of)))

    @rule(door=doors, at=st.integers(0, 99))
    def retry_troubled(self, door: str, at: int) -> None:
        if troubled := [job.id for job in self.model.jobs.values() if job.state in AGAIN]:
            self.retry(door, troubled[at % len(troubled)])

    @rule(
        target=jobs, door=doors, type=types, at=st.lists(st.integers(0, 99), min_size=1, max_size=2),
        on_failure=st.sampled_from(["cancel", "run"]),
    )  # fmt: skip
    def follow(self, door: str, type: str, at: list[int], on_failure: str) -> Any:
        """A job after the latest ones."""
        latest = sorted(self.model.jobs, reverse=True)[:4]
        if not latest:
            return multiple()
        tenant = self.model.jobs[latest[at[0] % len(latest)]].tenant
        after = {latest[one % len(latest)] for one in at}
        given = {"after": sorted(id for id in after if self.model.jobs[id].tenant == tenant), "on_failure": on_failure}
        return self._enqueue(door, type, {}, given | ({} if tenant is None else {"tenant": tenant}))

    @rule(door=database_doors, states=states, type=st.none() | types, kind=st.sampled_from([None, None, "fail"]))
    def retry_where(self, door: str, states: list[str], type: str | None, kind: str | None) -> None:
        filters, matched = self._matching(states, type, kind)
        assert self.door(door).count_ended(**filters) == len(matched)
        got = tuple(self.door(door).retry_where(**filters))
        assert got == self.model.retry_where(matched, self.world.callback_of)

    @rule(door=database_doors, states=states, succeeded=st.booleans(), type=st.none() | types)
    def purge(self, door: str, states: list[str], succeeded: bool, type: str | None) -> None:
        filters, matched = self._matching([*states, *(["succeeded"] if succeeded else [])], type, None)
        doomed = [job for job in matched if self.model.removable(job)]
        assert tuple(self.door(door).purge(**filters)) == (len(doomed), len(matched) - len(doomed))
        self.model.remove(doomed)

    def _matching(self, states: list[str], type: str | None, kind: str | None) -> tuple[dict[str, Any], list[ModelJob]]:
        filters = {"state": states, "type": type, "kind": kind}
        given = {name: value for name, value in filters.items() if value is not None}
        return given, self.model.matching(states, type, None, kind)

    @rule(door=doors, type=types, paused=st.sampled_from([True, False, False]))
    def pause(self, door: str, type: str, paused: bool) -> None:
        act = self.door(door).pause if paused else self.door(door).resume
        assert act(type) is (paused is not (type in self.model.paused))
        (self.model.paused.add if paused else self.model.paused.discard)(type)

    @rule(door=doors, type=types, limit=st.sampled_from([1, 2, None]), of_tenants=st.booleans())
    def set_limit(self, door: str, type: str, limit: int | None, of_tenants: bool) -> None:
        self.door(door).set_limit(type, **{"tenant_limit" if of_tenants else "limit": limit})
        known = self.model.tenant_limits if of_tenants else self.model.limits
        known.pop(type, None)
        if own := limit or (TYPES[type].tenant_limit if of_tenants else TYPES[type].limit):
            known[type] = own

    @rule(door=doors, name=names, type=types, payload=payloads, given=options, key=st.sampled_from([None, "k"]))
    def add_schedule(
        self, door: str, name: str, type: str, payload: Any, given: dict[str, Any], key: str | None
    ) -> None:
        given = {n: v for n, v in given.items() if n != "when"} | ({} if key is None else {"unique_key": key})
        self.door(door).add_schedule(name, "0 0 1 1 *", type, payload, **given)
        paused = name in self.model.schedules and self.model.schedules[name].paused
        self.model.schedules[name] = Schedule(type, payload, given, paused)

    @rule(door=doors, name=names, act=st.sampled_from(["pause", "resume", "remove"]))
    def change_schedule(self, door: str, name: str, act: str) -> None:
        found = self.model.schedules.get(name)
        got = told(lambda: getattr(self.door(door), f"{act}_schedule")(name))
        if found is None:
            agree(got, "refused: ScheduleNotFound")
        elif act == "remove":
            assert got is None
            del self.model.schedules[name]
        else:
            assert got is (found.paused is not (act == "pause"))
            found.paused = act == "pause"

    @rule(target=jobs, door=doors, name=names)
    def trigger_schedule(self, door: str, name: str) -> Any:
        got = told(lambda: self.door(door).trigger_schedule(name))
        found = self.model.schedules.get(name)
        if found is None:
            agree(got, "refused: ScheduleNotFound")
            return multiple()
        assert got == self.model.enqueue([got], found.type, found.payload, **found.options)[0]
        return got

    # The fleet works.

    @rule(room=st.sampled_from([1, 2, 3, 20]))
    def claim(self, room: int) -> None:
        leader = self.world.fleet.members[0].id
        taken = [execution.claimed for execution in self.world.fleet.claim(room)]
        assert len(taken) <= room
        for one in taken:
            assert (one.id, one.attempt) not in self.attempts, "a number was handed out twice"
            self.attempts.add((one.id, one.attempt))
            assert self.model.room(one.type, one.tenant or None), f"job {one.id} is claimed past a limit"
            self.model.claim(one.id, leader)
            assert json.loads(one.payload) == self.model.jobs[one.id].payload
        left = [j for j in self.model.jobs.values() if j.state == "pending" and self.model.room(j.type, j.tenant)]
        assert len(taken) == room or not left, "there was room, and jobs were left"
        for job in left:
            assert not any(job.priority < one.priority for one in taken), f"job {job.id} should have gone before"

    @rule(at=st.integers(0, 99), end=st.sampled_from(sorted(ENDS)))
    def run(self, at: int, end: str) -> None:
        if found := self._running(at):
            member, execution = found
            want = self._end(execution, end)
            assert want is self.world.fleet.settle(member, execution)
            assert want

    @rule(ends=st.lists(st.sampled_from(sorted(ENDS)), min_size=1, max_size=4), link=st.booleans())
    def work(self, ends: list[str], link: bool) -> None:
        """All that can run does, and ends."""
        self.promote()
        self.claim(20)
        at = 0
        while self._running(0):
            self.run(0, ends[at % len(ends)])
            at += 1
        if link:
            self.link()

    @rule(at=st.integers(0, 99))
    def give_back(self, at: int) -> None:
        if found := self._running(at):
            owner, execution = found
            self.world.fleet.give_back(owner, execution)
            assert self.model.settle(*execution.key, "pending")

    @rule(at=st.integers(0, 99))
    def complete(self, at: int) -> None:
        if found := self._running(at):
            member, execution = found
            value(self.world.conn, "select dispatcher.complete(%s, %s, '[null]')::text", *execution.key)
            assert self.model.settle(*execution.key, "succeeded", result=[None])
            execution.outcome = settle(as_job(execution.claimed), Returned(None), None, policy=POLICY)
            assert not self.world.fleet.settle(member, execution), "it was recorded twice"

    @rule(at=st.integers(0, 99), end=st.sampled_from(sorted(ENDS)))
    def settle_late(self, at: int, end: str) -> None:
        ghosts = self.world.fleet.ghosts
        if ghosts:
            member, execution = ghosts.pop(at % len(ghosts))
            assert self._end(execution, end) is False
            assert not self.world.fleet.settle(member, execution)

    @rule(at=st.integers(0, 1))
    def crash(self, at: int) -> None:
        gone = self.world.fleet.crash(at)
        for job in self.model.jobs.values():
            if job.state == "running" and job.owner == gone.id:
                became = "failed" if self._last_try(job) else "scheduled"
                assert self.model.settle(job.id, job.attempt, became, failed=True, kinds=["crash"])

    @rule()
    def change_leader(self) -> None:
        self.world.fleet.change_leader()

    @rule(job=jobs)
    def time_passes(self, job: int) -> None:
        if job in self.model.jobs and self.model.jobs[job].state in OPEN:
            query = "update dispatcher.job set run_at = now() - interval '1 s' where id = %s and run_at is not null"
            self.world.conn.execute(query, (job,))
            self.model.due(job)

    @rule()
    def promote(self) -> None:
        self.world.fleet.promote()
        self.model.promote()

    @rule()
    def link(self) -> None:
        self.world.fleet.link()
        self.model.link()

    @rule()
    def prune(self) -> None:
        self.world.fleet.prune()
        self.model.remove([job for job in self.model.jobs.values() if self.model.removable(job)])

    def _running(self, at: int) -> tuple[Member, Execution] | None:
        running = [(member, one) for member in self.world.fleet.members for one in member.running.values()]
        return running[at % len(running)] if running else None

    def _last_try(self, job: ModelJob) -> bool:
        return job.failures + 1 >= (job.max_attempts or POLICY.max_attempts)

    def _end(self, execution: Execution, end: str) -> bool:
        """Decides its outcome, by the product and by the model; whether the model took it."""
        ending, became, failed, kinds = ENDS[end]
        claimed, job = execution.claimed, self.model.jobs.get(execution.claimed.id)
        heard = job is not None and job.cancel_requested and isinstance(ending, Raised)
        reason = CancelReason.REQUESTED if heard else None
        execution.outcome = settle(as_job(claimed), ending, reason, policy=POLICY, max_attempts=claimed.max_attempts)
        if heard:
            became, failed, kinds = "canceled", False, []
        elif failed and job is not None and self._last_try(job):
            became = "failed"
        result = json.loads(execution.outcome.result or "null")
        return self.model.settle(*execution.key, became, failed=failed, kinds=kinds, result=result)

    # What must hold.

    @rule(job=jobs)
    def every_door_shows_the_same(self, job: int) -> None:
        shown = {name: self._look(name, "get", job) for name in DOORS}
        want = shown["sql"] if job in self.model.jobs else "refused: JobNotFound"
        for one in shown.values():
            agree(one, want)
        explained = [self._look(name, "explain", job) for name in ("client", "async", "http")]
        kinds = [one if isinstance(one, str) else [reason.kind for reason in one.reasons] for one in explained]
        assert kinds == [kinds[0]] * 3
        assert (kinds[0] == "refused: JobNotFound") is (job not in self.model.jobs)

        if job in self.model.jobs and self.model.jobs[job].state in FINAL:
            results = [self._look(name, "result", job) for name in ("client", "async", "http")]
            assert results == [results[0]] * 3
            assert (results[0] == "refused: JobFailed") is (self.model.jobs[job].state in ("failed", "canceled"))
            assert [self._look(name, "wait", job) for name in ("client", "async", "http")] == [want] * 3

    @rule(
        state=st.none() | st.sampled_from([*OPEN, *FINAL]), type=st.none() | types,
        tenant=st.sampled_from([None, None, "x"]), parent=st.none() | batches, limit=st.sampled_from([2, 1000]),
    )  # fmt: skip
    def every_door_lists_the_same(
        self, state: str | None, type: str | None, tenant: str | None, parent: int | None, limit: int
    ) -> None:
        wanted = {"state": state, "type": type, "tenant": tenant, "parent": parent}
        given = {name: value for name, value in wanted.items() if value is not None}
        jobs = [job for job in self.model.jobs.values() if all(getattr(job, n) == v for n, v in given.items())]
        ids = sorted((job.id for job in jobs), reverse=True)[:limit]
        for name in ("client", "async", "http", "cli"):
            assert [job.id for job in self.door(name).list(**given, limit=limit)] == ids, name

    def _look(self, door: str, method: str, job: int) -> Any:
        return told(lambda: getattr(self.door(door), method)(job))

    @invariant()
    def all_is_as_the_model_has_it(self) -> None:
        self.every_job_is_as_the_model_has_it()
        self.every_batch_counts_exactly()
        keys = [(j.type, j.unique_key) for j in self.model.jobs.values() if j.unique_key and j.state in OPEN]
        assert len(keys) == len(set(keys))

    def every_job_is_as_the_model_has_it(self) -> None:
        rows = {row["id"]: row for row in self.world.rows(ROWS)}
        assert rows.keys() == self.model.jobs.keys()
        for id, row in rows.items():
            job = self.model.jobs[id]
            seen = {name: row[name] for name in SEEN} | {"errors": [error["kind"] for error in row["errors"]]}
            assert seen == {name: getattr(job, name) for name in (*SEEN, "errors")}, f"job {id}"
            assert row["parent_id"] == job.parent
            assert row["finished"] is (job.state in FINAL)
            assert row["owner"] == job.owner or job.state != "running" or job.batch
            assert row["later"] is job.later or job.state in FINAL

    def every_batch_counts_exactly(self) -> None:
        for row in self.world.rows("select * from dispatcher.batches"):
            job = self.model.jobs[row["id"]]
            counts = self.model.counts(row["id"])
            assert {state: row[state] for state in (*OPEN, *FINAL)} == {
                state: counts[state] for state in (*OPEN, *FINAL)
            }
            assert job.batch is not None
            assert (row["total"], row["state"], row["callback_id"], row["cancel_requested"]) == (
                counts.total(), job.state, job.batch.callback_id, job.batch.cancel_requested,
            )  # fmt: skip

    def teardown(self) -> None:
        """In the end, after all that follows, nothing that could go on is blocked."""
        self.link()
        for job in self.model.jobs.values():
            assert job.state != "blocked" or any(
                id in self.model.jobs and self.model.jobs[id].state in OPEN for id in job.after
            )
        self.every_job_is_as_the_model_has_it()


SEEN = (
    "type", "tenant", "state", "priority", "attempt", "failures", "payload", "result", "unique_key", "cancel_requested",
)  # fmt: skip


@pytest.mark.timeout(0 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 240)
def test_whatever_people_and_the_fleet_do_every_job_is_as_promised(world: World) -> None:
    class Machine(Jobs):
        pass

    Machine.world = world
    run_state_machine_as_test(Machine, settings=PROFILE)
