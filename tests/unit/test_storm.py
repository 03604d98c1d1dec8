"""The storm's checker, against forged histories: each rule finds its breach and nothing else; and the storm's plan."""

from __future__ import annotations

import dataclasses
import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.events import Event
from tests.storm import faults
from tests.storm.checker import RULES, check
from tests.storm.history import BatchRow, Change, Enqueued, History, Limits, Row
from tests.storm.plan import CALM_S, KINDS, plan

NOON = datetime(2030, 1, 1, 12, 0, tzinfo=UTC)
WAYS = {"succeeded": "return", "failed": "fail", "canceled": "cancel", "partial": "partial"}


class Forge:
    """Writes a history in which every promise is kept, until a test spoils it."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.rows: dict[int, Row] = {}
        self.changes: list[Change] = []
        self.facts: dict[str, Any] = {"limits": Limits(overall=10), "clock_offset_s": NOON.timestamp()}
        self.facts["timeouts_s"] = {"late": 0.4}
        self._number = itertools.count(1)

    def event(self, t: float, job: int, what: str, why: str = "", *, attempt: int = 1, pid: int = 100) -> None:
        self.events.append(Event(t, pid, job, attempt, what, why))

    def change(
        self,
        job: int,
        before: str | None,
        after: str,
        attempt: int = 0,
        at_s: float = 0.0,
        *,
        due_s: float | None = None,
        session: str = "a",
        term: int = 1,
    ) -> None:
        due = None if due_s is None else NOON + timedelta(seconds=due_s)
        at = NOON + timedelta(seconds=at_s)
        self.changes.append(Change(next(self._number), job, before, after, attempt, at, due, session, term))

    def row(self, id: int, state: str, **fields: Any) -> None:
        values: dict[str, Any] = {"type": "quick", "tenant": None, "attempt": 1, "unique_key": None, "parent_id": None}
        values |= {
            "failures": 0,
            "max_attempts": 1 if state == "failed" else 5,
            "due": None,
            "payload": {},
            "result": {"attempt": fields.get("attempt", 1)},
            "errors": [],
        }
        self.rows[id] = Row(id=id, state=state, **values | fields)

    def job(
        self, id: int, start: float, last: float, state: str = "succeeded", *, how: str = "", **fields: Any
    ) -> None:
        """A job that was enqueued just before its one attempt."""
        self.change(id, None, "pending", at_s=start)
        self.change(id, "pending", "running", 1, at_s=start)
        self.change(id, "running", state, 1, at_s=last)
        self.event(start, id, "start")
        self.event(last, id, "end", how or WAYS[state])
        self.row(id, state, **fields)

    def batch(self, id: int, *children: str, **counts: int) -> None:
        """A batch and its jobs, in these states, and its callback."""
        for number, state in enumerate(children, id + 1):
            self.job(number, number, number + 0.5, state, parent_id=id, payload={"batch": "b"})
        one = children[0] if len(set(children)) == 1 else ""
        state = one or ("partial" if "succeeded" in children else "failed")
        self.change(id, None, "running", 0, at_s=id)
        self.change(id, "running", state, 0, at_s=id + 10)
        self.row(id, state, type="batch", attempt=0)
        self.facts["batches"] = [BatchRow(id, state, len(children), counts)]
        self.job(id + 90, id + 11, id + 12, type="callback", payload={"callback_of": "b"})

    def breaches(self) -> list[str]:
        enqueued = [Enqueued(row.id, 0.0, row.type) for row in self.rows.values() if row.parent_id is None]
        facts = {"enqueued": enqueued} | self.facts
        return check(History(events=self.events, rows=self.rows, changes=self.changes, **facts))


@pytest.fixture
def forge() -> Forge:
    return Forge()


def assert_only(forge: Forge, rule: str, *words: str) -> None:
    breaches = forge.breaches()
    assert {breach.partition(":")[0] for breach in breaches} == {rule}, breaches
    for word in words:
        assert word in breaches[0]


def test_a_history_that_keeps_every_promise_is_not_accused(forge: Forge) -> None:
    forge.job(1, 1.0, 2.0)
    forge.job(2, 2.0, 3.0, "failed")
    forge.job(3, 3.0, 4.0, "canceled")
    forge.job(4, 4.0, 5.0, "partial")
    forge.batch(10, "succeeded", "failed", succeeded=1, failed=1)
    # Killed in its first attempt, and run again.
    forge.change(5, None, "pending", at_s=5.0)
    forge.change(5, "pending", "running", 1, 5.0)
    forge.change(5, "running", "scheduled", 1, 5.6, due_s=5.8)
    forge.change(5, "scheduled", "pending", 1, 5.9, due_s=5.8)
    forge.change(5, "pending", "running", 2, 6.0, due_s=5.8, session="b", term=2)
    forge.change(5, "running", "succeeded", 2, 6.5, due_s=5.8)
    forge.event(5.0, 5, "start")
    forge.event(5.5, 5, "beat")
    forge.event(6.0, 5, "start", attempt=2, pid=101)
    forge.event(6.5, 5, "end", "return", attempt=2, pid=101)
    forge.row(5, "succeeded", attempt=2, failures=1, errors=[{"attempt": 1, "kind": "crash"}])
    assert forge.breaches() == []


def test_a_job_that_was_committed_and_is_gone(forge: Forge) -> None:
    forge.facts["enqueued"] = [Enqueued(7, 0.0, "quick")]
    assert_only(forge, "nothing_is_lost", "7")


@pytest.mark.parametrize("state", ["pending", "running", "scheduled", "blocked"])
def test_a_job_that_never_ended(forge: Forge, state: str) -> None:
    forge.change(1, None, "pending")
    if state == "running":
        forge.change(1, "pending", "running", 1)
    forge.row(1, state)
    assert "nothing_is_lost" in forge.breaches()[0]


def test_a_final_state_that_was_left_unasked(forge: Forge) -> None:
    forge.job(1, 1.0, 2.0, "failed")
    forge.change(1, "failed", "pending", 1)
    forge.change(1, "pending", "canceled", 1)
    forge.rows[1] = dataclasses.replace(forge.rows[1], state="canceled")
    forge.facts["canceled"] = frozenset([1])
    assert_only(forge, "states_follow_one_another", "1 times after its end")
    forge.facts["retried"] = {1: 1}
    assert forge.breaches() == []


def test_a_second_final_state(forge: Forge) -> None:
    forge.job(1, 1.0, 2.0, "failed")
    forge.change(1, "failed", "succeeded", 1)
    forge.rows[1] = dataclasses.replace(forge.rows[1], state="succeeded")
    assert any("states_follow_one_another" in breach for breach in forge.breaches())


def test_a_move_that_no_operation_makes(forge: Forge) -> None:
    forge.change(1, None, "pending")
    forge.change(1, "pending", "succeeded")
    forge.row(1, "succeeded", attempt=0, result={"attempt": 0})
    assert_only(forge, "states_follow_one_another", "pending to succeeded")


def test_a_change_that_nobody_saw(forge: Forge) -> None:
    forge.job(1, 1.0, 2.0)
    del forge.changes[1]
    assert any("states_follow_one_another" in breach for breach in forge.breaches())


def test_an_attempt_handed_out_twice(forge: Forge) -> None:
    forge.change(1, None, "pending")
    forge.change(1, "pending", "running", 1)
    forge.change(1, "running", "pending", 1)
    forge.change(1, "pending", "running", 1)
    forge.change(1, "running", "succeeded", 1)
    forge.event(1.0, 1, "start")
    forge.event(2.0, 1, "end", "return")
    forge.row(1, "succeeded")
    assert any("attempts_are_counted" in breach for breach in forge.breaches())


def test_an_attempt_started_twice(forge: Forge) -> None:
    forge.job(1, 1.0, 2.0)
    forge.event(2.1, 1, "start", pid=101)
    forge.event(2.2, 1, "end", "return", pid=101)
    assert_only(forge, "attempts_run_once", "2 times")


def test_an_attempt_that_was_never_claimed(forge: Forge) -> None:
    forge.job(1, 1.0, 2.0)
    forge.event(3.0, 1, "start", attempt=2)
    # Its row knows nothing of it, so that is another breach.
    assert {breach.partition(":")[0] for breach in forge.breaches()} == {
        "attempts_run_once",
        "what_is_recorded_is_what_was_done",
    }


def test_attempts_that_overlap(forge: Forge) -> None:
    forge.change(1, None, "pending")
    for number in (1, 2):
        forge.change(1, "pending", "running", number, number)
        forge.change(1, "running", "pending", number, number + 0.9)
    forge.change(1, "pending", "canceled", 2, 3.0)
    forge.facts["canceled"] = frozenset([1])
    forge.row(1, "canceled", attempt=2)
    forge.event(1.0, 1, "start")
    forge.event(2.0, 1, "start", attempt=2, pid=101)
    forge.event(2.1, 1, "beat")  # of the first, which was stopped and woke
    forge.event(3.0, 1, "end", "interrupted", attempt=2, pid=101)
    assert_only(forge, "attempts_do_not_overlap", "0.100 s")


@pytest.mark.parametrize("what", ["overall", "types", "tenants"])
def test_a_limit_passed(forge: Forge, what: str) -> None:
    limits = {"overall": Limits(2), "types": Limits(10, {"quick": 2}), "tenants": Limits(10, {}, {"quick": 2})}
    forge.facts["limits"] = limits[what]
    forge.job(1, 1.0, 5.0, tenant="ada")
    forge.job(2, 2.0, 5.0, tenant="ada")
    forge.job(3, 5.0, 6.0, tenant="ada")  # in the instant in which there is room
    assert forge.breaches() == []
    forge.job(4, 5.5, 6.0, tenant="ada")
    forge.job(5, 5.9, 6.5, tenant="ada")
    assert_only(forge, "limits_hold", "[(3, 1), (4, 1), (5, 1)]")


def test_an_attempt_that_wrote_one_line_counts_in_that_instant_only(forge: Forge) -> None:
    forge.facts["limits"] = Limits(1)
    for id in range(1, 5):
        forge.job(id, float(id), float(id))
    assert forge.breaches() == []


def test_a_rate_passed(forge: Forge) -> None:
    forge.facts["limits"] = Limits(100, rates={"quick": (1.0, 2)})
    for id in range(1, 4):
        forge.job(id, 1.0 + id / 10, 1.5 + id / 10)
    assert forge.breaches() == []
    forge.job(4, 1.4, 2.0)
    assert_only(forge, "rates_hold", "4 of quick were claimed within 0.3 s")
    forge.events.clear()
    assert any("were claimed" in breach for breach in forge.breaches()), "also where nothing was seen of them"


def test_a_rate_passed_by_jobs_that_were_claimed_in_time(forge: Forge) -> None:
    forge.facts["limits"] = Limits(100, rates={"quick": (1.0, 2)})
    for id in range(1, 8):
        forge.job(id, float(id), 10.0 + id)
        forge.events[-2] = dataclasses.replace(forge.events[-2], t=9.0)
    assert_only(forge, "rates_hold", "of quick started within 0.0 s")


def test_a_success_that_no_attempt_told_of(forge: Forge) -> None:
    forge.job(1, 1.0, 2.0)
    forge.events.pop()
    assert_only(forge, "what_is_recorded_is_what_was_done", "told of no end")


def test_a_job_killed_after_it_had_completed_itself_is_no_breach(forge: Forge) -> None:
    forge.job(1, 1.0, 2.0, type="effect")
    forge.events.pop()
    forge.facts["effects"] = [(1, 1)]
    assert forge.breaches() == []


def test_an_end_other_than_the_attempts_own(forge: Forge) -> None:
    error = {"attempt": 1, "kind": "exception"}
    forge.job(1, 1.0, 2.0, "failed", how="return", failures=1, errors=[error])
    assert_only(forge, "what_is_recorded_is_what_was_done", "ended by return")


def test_work_that_was_done_and_thrown_away(forge: Forge) -> None:
    forge.change(1, None, "pending")
    forge.change(1, "pending", "running", 1)
    forge.change(1, "running", "scheduled", 1, at_s=2.0)
    forge.change(1, "scheduled", "pending", 1, at_s=2.0)
    forge.change(1, "pending", "running", 2, at_s=2.0)
    forge.change(1, "running", "succeeded", 2, at_s=2.5)
    for attempt in (1, 2):
        forge.event(attempt, 1, "start", attempt=attempt)
        forge.event(attempt + 0.5, 1, "end", "return", attempt=attempt)
    forge.row(1, "succeeded", attempt=2)
    assert forge.breaches() == [], "it was given back as it ended"
    forge.events[1] = dataclasses.replace(forge.events[1], t=1.0)
    assert_only(forge, "what_is_recorded_is_what_was_done", "became scheduled")


def test_a_result_of_another_attempt(forge: Forge) -> None:
    forge.job(1, 1.0, 2.0, result={"attempt": 3})
    assert_only(forge, "what_is_recorded_is_what_was_done", "its result is")


def test_a_job_canceled_unasked(forge: Forge) -> None:
    forge.change(1, None, "pending")
    forge.change(1, "pending", "canceled")
    forge.row(1, "canceled", attempt=0)
    assert_only(forge, "cancels_have_a_reason", "nobody asked")


@pytest.mark.parametrize("effects", [[], [(1, 1), (1, 1)], [(1, 2)]])
def test_an_effect_missing_doubled_or_of_another_attempt(forge: Forge, effects: list[tuple[int, int]]) -> None:
    forge.job(1, 1.0, 2.0, how="complete", type="effect")
    forge.facts["effects"] = [(1, 1)]
    assert forge.breaches() == []
    forge.facts["effects"] = effects
    assert_only(forge, "effects_happen_once", f"{[attempt for _, attempt in effects]}")


def test_an_effect_of_a_job_that_did_not_succeed(forge: Forge) -> None:
    forge.job(1, 1.0, 2.0, "failed", type="effect")
    forge.facts["effects"] = [(1, 1)]
    assert_only(forge, "effects_happen_once", "is failed")


def test_two_unfinished_jobs_with_one_key(forge: Forge) -> None:
    forge.job(1, 1.0, 2.0, unique_key="k")
    forge.job(2, 2.0, 3.0, unique_key="k")
    assert forge.breaches() == []
    forge.job(3, 2.9, 4.0, unique_key="k")
    assert_only(forge, "unique_keys_are_unique", "job 3")


def test_a_job_that_did_not_wait_for_the_one_before_it(forge: Forge) -> None:
    forge.job(1, 1.0, 2.0)
    forge.job(2, 1.9, 3.0, payload={"after": [1]})
    assert_only(forge, "who_comes_after_waits", "0.100 s before job 1")


def test_a_job_that_ran_although_the_one_before_it_failed(forge: Forge) -> None:
    forge.job(1, 1.0, 2.0, "failed")
    forge.job(2, 3.0, 4.0, payload={"after": [1], "on_failure": "run"})
    assert forge.breaches() == []
    forge.job(3, 3.0, 4.0, payload={"after": [1], "on_failure": "cancel"})
    assert_only(forge, "who_comes_after_waits", "job 3 is succeeded")


def test_a_due_time_fired_twice(forge: Forge) -> None:
    for id in (1, 2):
        forge.job(id, 1.0, 2.0, payload={"schedule": "s"}, due=NOON)
    assert_only(forge, "schedules_fire_once", "2 times")


def test_a_due_time_that_was_not_made_good(forge: Forge) -> None:
    due = [NOON + timedelta(minutes=n) for n in range(3)]
    for minute in (0, 2):
        start = 60.0 * minute
        forge.job(minute, start, start + 0.5, payload={"schedule": "s"}, due=due[minute])
    forge.facts["due"] = {"s": due}
    assert_only(forge, "schedules_fire_once", "did not fire")


@pytest.mark.parametrize(("due_s", "why"), [(0.5, "no full minute"), (60.0, "at 2030-01-01 12:00:01")])
def test_a_schedule_that_fired_at_another_time(forge: Forge, due_s: float, why: str) -> None:
    forge.job(1, 1.0, 2.0, payload={"schedule": "s"}, due=NOON + timedelta(seconds=due_s))
    assert_only(forge, "schedules_fire_once", why)


def test_a_schedule_that_never_fired_at_all(forge: Forge) -> None:
    forge.facts["due"] = {"s": [NOON]}
    assert_only(forge, "schedules_fire_once", "did not fire")


def test_a_batch_whose_jobs_all_canceled_themselves_is_canceled(forge: Forge) -> None:
    forge.batch(10, "canceled", "canceled", canceled=2)
    assert forge.breaches() == []


def test_a_job_that_completed_itself_holds_no_slot_until_its_thread_is_back(forge: Forge) -> None:
    forge.facts["limits"] = Limits(1)
    forge.job(1, 1.0, 5.0, how="complete", type="effect")
    forge.facts["effects"] = [(1, 1)]
    forge.job(2, 2.0, 3.0)
    assert forge.breaches() == []


def test_a_batch_that_counts_wrongly(forge: Forge) -> None:
    forge.batch(10, "succeeded", "failed", succeeded=2)
    assert_only(forge, "batches_end_once", "tells")


def test_a_batch_in_a_state_that_its_counts_do_not_give(forge: Forge) -> None:
    forge.batch(10, "succeeded", "failed", succeeded=1, failed=1)
    forge.facts["batches"] = [dataclasses.replace(forge.facts["batches"][0], state="succeeded")]
    assert_only(forge, "batches_end_once", "is succeeded")


def test_a_batch_that_ended_twice(forge: Forge) -> None:
    forge.batch(10, "succeeded", succeeded=1)
    forge.facts["retried"] = {10: 1}
    forge.change(10, "succeeded", "running")
    forge.change(10, "running", "succeeded")
    assert_only(forge, "batches_end_once", "ended 2 times")


@pytest.mark.parametrize("times", [0, 2])
def test_a_callback_missing_or_doubled(forge: Forge, times: int) -> None:
    forge.batch(10, "succeeded", succeeded=1)
    if times:
        forge.job(101, 30.0, 31.0, payload={"callback_of": "b"})
    else:
        forge.rows[100] = dataclasses.replace(forge.rows[100], payload={})
    assert_only(forge, "batches_end_once", f"enqueued {times} times")


def claimed(forge: Forge, id: int, session: str, term: int) -> None:
    forge.change(id, None, "pending", at_s=id)
    forge.change(id, "pending", "running", 1, id, session=session, term=term)
    forge.change(id, "running", "canceled", 1, id)
    forge.row(id, "canceled")
    forge.facts["canceled"] = frozenset(forge.rows)


def test_a_former_leader_that_claims_on(forge: Forge) -> None:
    for id, (session, term) in enumerate([("a", 1), ("a", 1), ("b", 2), ("a", 3)], 1):
        claimed(forge, id, session, term)
    assert forge.breaches() == [], "who has given the lease away may lead again"
    claimed(forge, 5, "b", 2)
    assert_only(forge, "one_leader_claims", "b claimed attempt 1 of job 5 in term 2 after a claim in term 3")


def test_two_sessions_that_claim_in_one_term(forge: Forge) -> None:
    claimed(forge, 1, "a", 1)
    claimed(forge, 2, "b", 1)
    assert_only(forge, "one_leader_claims", "in term 1, in which a had claimed")


def test_rows_that_run_past_a_limit_although_nothing_was_seen_of_them(forge: Forge) -> None:
    forge.facts["limits"] = Limits(10, {"quick": 1})
    forge.facts["canceled"] = frozenset([1, 2])
    for id in (1, 2):
        forge.change(id, None, "pending")
        forge.change(id, "pending", "running", 1)
        forge.row(id, "canceled")
    for id in (1, 2):
        forge.change(id, "running", "canceled", 1)
    assert_only(forge, "limits_hold", "2 rows of quick")


def test_a_job_claimed_before_it_was_due(forge: Forge) -> None:
    forge.job(1, 1.0, 2.0)
    forge.changes[1] = dataclasses.replace(forge.changes[1], due=NOON + timedelta(seconds=1.5))
    assert_only(forge, "nothing_starts_early", "0.500 s before")


def test_a_delay_that_was_forgotten(forge: Forge) -> None:
    forge.job(1, 1.0, 2.0)
    forge.facts["enqueued"] = [Enqueued(1, 0.9, "quick", delay_s=3.0)]
    assert_only(forge, "nothing_starts_early", "3.0 s after")


def test_an_attempt_started_after_the_job_was_taken_from_it(forge: Forge) -> None:
    """Nobody runs it any more, so it overlaps with nothing."""
    forge.change(1, None, "pending", at_s=1)
    forge.change(1, "pending", "running", 1, 1)
    forge.change(1, "running", "pending", 1, 2)
    forge.change(1, "pending", "canceled", 1, 2)
    forge.event(3.0, 1, "start")
    forge.row(1, "canceled")
    forge.facts["canceled"] = frozenset([1])
    assert any(b.startswith("attempts_run_once") and "1.000 s after it became pending" in b for b in forge.breaches())


def test_an_attempt_that_goes_on_after_its_end_was_recorded(forge: Forge) -> None:
    forge.job(1, 1.0, 2.0, "canceled", how="interrupted")
    forge.facts["canceled"] = frozenset([1])
    forge.events[-1] = dataclasses.replace(forge.events[-1], t=4.0)
    assert_only(forge, "nothing_runs_past_its_end", "2.000 s after it had become canceled")


def test_an_attempt_that_ends_before_the_time_until_which_it_was_given_back(forge: Forge) -> None:
    forge.change(1, None, "pending", at_s=1)
    forge.change(1, "pending", "running", 1, 1)
    forge.change(1, "running", "scheduled", 1, 2, due_s=4)
    forge.change(1, "scheduled", "canceled", 1, 5, due_s=4)
    forge.event(1.0, 1, "start")
    forge.event(3.9, 1, "beat")
    forge.row(1, "canceled")
    forge.facts["canceled"] = frozenset([1])
    assert forge.breaches() == []
    forge.event(4.9, 1, "beat")
    assert_only(forge, "nothing_runs_past_its_end", "0.900 s after it had become scheduled")


def crashed(forge: Forge, kind: str, **fields: Any) -> None:
    """A job whose one attempt was ended by something else."""
    error = {"attempt": 1, "kind": kind}
    forge.job(1, 1.0, 2.0, "failed", how="interrupted", failures=1, errors=[error], **fields)


def test_a_crash_of_a_process_that_works_on(forge: Forge) -> None:
    crashed(forge, "crash")
    forge.job(2, 1.0, 2.2)
    assert forge.breaches() == []
    forge.job(3, 1.5, 3.0)
    assert_only(forge, "timeouts_and_crashes_have_a_reason", "worked on job 3 1.000 s later")


def test_a_job_without_a_timeout_that_timed_out(forge: Forge) -> None:
    """As it would if the clock of the day, which was stepped, was asked for how long it has run."""
    crashed(forge, "timeout")
    assert_only(forge, "timeouts_and_crashes_have_a_reason", "(quick) timed out after 1.000 s")


def test_a_job_that_timed_out_before_its_time(forge: Forge) -> None:
    crashed(forge, "timeout", type="late")
    assert forge.breaches() == []
    forge.events[0] = dataclasses.replace(forge.events[0], t=1.9)
    assert_only(forge, "timeouts_and_crashes_have_a_reason", "(late) timed out after 0.100 s")


def test_a_job_that_failed_for_good_with_tries_left(forge: Forge) -> None:
    error = {"attempt": 1, "kind": "exception"}
    forge.job(1, 1.0, 2.0, "failed", how="raise", failures=1, max_attempts=3, errors=[error])
    assert_only(forge, "tries_are_counted", "1 of 3 failures")


def test_more_tries_than_there_are(forge: Forge) -> None:
    error = {"attempt": 1, "kind": "exception"}
    forge.job(1, 1.0, 2.0, "failed", how="raise", failures=4, max_attempts=3, errors=[error])
    forge.facts["retried"] = {1: 1}
    assert_only(forge, "tries_are_counted", "4 failures of at most 3")


def test_a_failure_counted_where_there_was_none(forge: Forge) -> None:
    """As a snooze or a stop would be."""
    forge.job(1, 1.0, 2.0, failures=1)
    assert_only(forge, "tries_are_counted", "1 failures, and 0 errors")


def test_an_effect_doubled_in_a_job_that_somebody_tried_to_retry(forge: Forge) -> None:
    forge.job(1, 1.0, 2.0, how="complete", type="effect")
    forge.facts |= {"effects": [(1, 1), (1, 1)], "retried": {1: 1}}
    assert_only(forge, "effects_happen_once", "[1, 1]")


@pytest.mark.parametrize("parts", [[(1, 0)], [(1, 0), (1, 1), (1, 1)], [(1, 0), (1, 1), (1, 2)]])
def test_a_part_missing_doubled_or_beyond_the_last(forge: Forge, parts: list[tuple[int, int]]) -> None:
    forge.job(1, 1.0, 2.0, how="complete", type="steps", payload={"steps": 2})
    forge.facts |= {"effects": [(1, 1)], "parts": [(1, 1), (1, 0)]}
    assert forge.breaches() == []
    forge.facts["parts"] = parts
    assert_only(forge, "checkpoints_count", f"{[part for _, part in parts]}")


def test_a_part_doubled_in_a_job_that_did_not_succeed(forge: Forge) -> None:
    forge.job(1, 1.0, 2.0, "failed", type="steps", payload={"steps": 2})
    forge.facts["parts"] = [(1, 0)]
    assert forge.breaches() == []
    forge.facts["parts"] = [(1, 0), (1, 0)]
    assert_only(forge, "checkpoints_count", "[0, 0]")


def test_a_job_that_is_not_what_was_enqueued(forge: Forge) -> None:
    forge.job(1, 1.0, 2.0, payload={"n": 8})
    forge.facts["enqueued"] = [Enqueued(1, 0.9, "quick", n=7)]
    assert_only(forge, "nothing_is_lost", "enqueued as number 7")


def test_a_job_that_was_there_and_is_gone(forge: Forge) -> None:
    forge.job(1, 1.0, 2.0, parent_id=5)
    del forge.rows[1]
    assert_only(forge, "nothing_is_lost", "not any more")


def test_two_enqueues_with_one_answer(forge: Forge) -> None:
    forge.job(1, 1.0, 2.0)
    forge.facts["enqueued"] = [Enqueued(1, 0.9, "quick"), Enqueued(1, 0.95, "quick")]
    assert_only(forge, "unique_keys_are_unique", "2 enqueues")


def test_a_key_for_which_the_answer_is_a_job_that_has_ended(forge: Forge) -> None:
    forge.job(1, 1.0, 2.0, unique_key="k")
    forge.facts["enqueued"] = [Enqueued(1, 0.9, "quick", key="k"), Enqueued(1, 1.9, "quick", key="k")]
    assert forge.breaches() == []
    forge.facts["enqueued"].append(Enqueued(1, 3.0, "quick", key="k"))
    assert_only(forge, "unique_keys_are_unique", "had ended before")


def test_a_job_claimed_after_its_cancel_was_answered(forge: Forge) -> None:
    forge.job(1, 3.0, 4.0)
    forge.facts |= {"canceled": frozenset([1]), "canceled_at": {1: 2.0}}
    assert_only(forge, "cancels_count", "after the job had been canceled")


def test_a_job_canceled_by_a_failure_after_which_it_was_to_run(forge: Forge) -> None:
    forge.job(1, 1.0, 2.0, "failed")
    forge.change(2, None, "blocked")
    forge.change(2, "blocked", "canceled")
    forge.row(2, "canceled", attempt=0, payload={"after": [1], "on_failure": "run"})
    assert_only(forge, "cancels_have_a_reason", "nobody asked")


def test_a_job_claimed_before_the_end_of_the_one_before_it_was_recorded(forge: Forge) -> None:
    forge.job(2, 3.0, 4.0, payload={"after": [1]})
    forge.job(1, 1.0, 2.0)
    assert_only(forge, "who_comes_after_waits", "claimed before job 1 had ended")


def test_a_batch_that_ended_before_its_last_job(forge: Forge) -> None:
    forge.batch(10, "succeeded", succeeded=1)
    # The batch was there first, and so was its end.
    numbers = {None: -1, "running": 0}
    forge.changes = [
        dataclasses.replace(change, number=numbers[change.before]) if change.job == 10 else change
        for change in forge.changes
    ]
    assert_only(forge, "batches_end_once", "ended before job 11 became succeeded")


def test_a_batch_with_fewer_jobs_than_were_enqueued(forge: Forge) -> None:
    forge.batch(10, "succeeded", succeeded=1)
    forge.facts["enqueued"] = [Enqueued(10, 1.0, "batch", jobs=2)]
    assert_only(forge, "batches_end_once", "batch 10 of 2")


def test_every_rule_has_a_forged_breach() -> None:
    """The tests above name each rule, so a new one without a test shows here."""
    source = Path(__file__).read_text()
    assert [rule.__name__ for rule in RULES if source.count(f'"{rule.__name__}') == 0] == []


# The plan


def test_a_seed_gives_the_same_faults_at_the_same_times() -> None:
    assert plan(7, 120) == plan(7, 120)
    assert plan(7, 120) != plan(8, 120)
    assert list(plan(7, 120))[:5] == list(plan(7, 600))[:5], "a longer storm begins as a shorter one"


def test_every_fault_can_be_made_and_comes_in_ten_minutes_on_twenty_seeds() -> None:
    planned = {fault.kind for seed in range(1, 21) for fault in plan(seed, 600)}
    assert planned == {kind.name for kind in KINDS}
    assert all(callable(getattr(faults.Faults, f"_{kind.name}")) for kind in KINDS)


@pytest.mark.parametrize("seed", range(1, 6))
def test_a_plan_ends_in_calm_and_breaks_each_thing_once_at_a_time(seed: int) -> None:
    planned = plan(seed, 300)
    assert all(fault.until_s <= 300 - CALM_S for fault in planned)
    excludes = {kind.name: kind.excludes for kind in KINDS}
    down = [fault for fault in planned if excludes[fault.kind] == "server"]
    assert all(one.until_s <= two.at_s for one, two in itertools.pairwise(down))
