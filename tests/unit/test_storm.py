"""The storm's plan; and its checker as a whole: test_storm_*.py have its rules, each against a forged breach."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.storm import faults
from tests.storm.checker import RULES
from tests.storm.plan import CALM_S, KINDS, plan
from tests.unit.storm_forge import Forge


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


def test_every_rule_has_a_forged_breach() -> None:
    """The tests beside this file name each rule, so a new one without a test shows here."""
    source = "".join(file.read_text() for file in Path(__file__).parent.glob("test_storm*.py"))
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
