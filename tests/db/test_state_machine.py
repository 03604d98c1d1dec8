"""Random operations through random front doors, and a fleet that claims, settles and crashes, against a pure model.

After each step every job must be as the model has it. What people do stands in job_people.py, what the fleet does here.
`HYPOTHESIS_PROFILE=long` looks for minutes, with new seeds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule, run_state_machine_as_test

from dispatcher.executor import Cancel, Fail, Partial, Retry, Snooze
from dispatcher.inflight import Execution
from dispatcher.job import CancelReason
from dispatcher.outcome import Raised, Returned, settle
from tests.db.front_doors import DOORS, opened
from tests.db.job_fleet import Member
from tests.db.job_model import FINAL, OPEN, ModelJob
from tests.db.job_people import People
from tests.db.job_world import HOUR_S, POLICY, TYPES, World, agree, told, types
from tests.db.running import as_job, publish, value
from tests.db.serving import Served

PROFILES = {
    "quick": settings(derandomize=True, max_examples=30, stateful_step_count=40),
    "long": settings(max_examples=300, stateful_step_count=60, print_blob=True),
}
PROFILE = settings(
    PROFILES[os.environ.get("HYPOTHESIS_PROFILE", "quick")],
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=[*HealthCheck],
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


@pytest.fixture
def world(dsn: str, conn: psycopg.Connection[Any]) -> Iterator[World]:
    publish(conn, *TYPES.values())
    with ExitStack() as stack:
        served = stack.enter_context(Served(dsn))
        world = World(dsn, conn, stack.enter_context(opened(dsn, served)))
        stack.callback(world.fleet.close)
        yield world


class Jobs(People):
    """What people may do, what the fleet does, and what must hold."""

    jobs, batches = People.jobs, People.batches

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
