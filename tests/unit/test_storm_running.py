"""The storm's checker, against forged histories: who claims, what runs, when, and how much at once."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest

from tests.storm.history import Enqueued, Limits
from tests.unit.storm_forge import NOON, Forge, assert_only


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


def test_a_job_that_completed_itself_holds_no_slot_until_its_thread_is_back(forge: Forge) -> None:
    forge.facts["limits"] = Limits(1)
    forge.job(1, 1.0, 5.0, how="complete", type="effect")
    forge.facts["effects"] = [(1, 1)]
    forge.job(2, 2.0, 3.0)
    assert forge.breaches() == []


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
