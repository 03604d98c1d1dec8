"""The storm's checker, against forged histories: whether what was asked for was done."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest

from tests.storm.history import Enqueued
from tests.unit.storm_forge import NOON, Forge, assert_only


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


def test_a_job_canceled_unasked(forge: Forge) -> None:
    forge.change(1, None, "pending")
    forge.change(1, "pending", "canceled")
    forge.row(1, "canceled", attempt=0)
    assert_only(forge, "cancels_have_a_reason", "nobody asked")


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
