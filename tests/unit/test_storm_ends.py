"""The storm's checker, against forged histories: how attempts end, and what becomes of their jobs."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.unit.storm_forge import Forge, assert_only


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


@pytest.mark.parametrize(("kind", "counts"), [("timeout", False), ("exception", True)])
def test_only_the_note_of_a_timeout_is_no_failure_of_what_succeeded(forge: Forge, kind: str, counts: bool) -> None:
    """It was past its timeout, and came back after all."""
    forge.job(1, 1.0, 2.0, type="late", errors=[{"attempt": 1, "kind": kind}])
    if counts:
        assert_only(forge, "tries_are_counted", "0 failures, and 1 errors")
    else:
        assert forge.breaches() == []


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
