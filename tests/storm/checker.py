"""All rules, in the order in which their breaches are told."""

from __future__ import annotations

from tests.storm.history import History
from tests.storm.rules import Rule, asked, ends, running

RULES: tuple[Rule, ...] = (
    asked.nothing_is_lost,
    ends.states_follow_one_another,
    running.one_leader_claims,
    running.attempts_are_counted,
    running.attempts_run_once,
    running.attempts_do_not_overlap,
    running.nothing_starts_early,
    running.limits_hold,
    running.rates_hold,
    ends.what_is_recorded_is_what_was_done,
    ends.timeouts_and_crashes_have_a_reason,
    ends.nothing_runs_past_its_end,
    ends.tries_are_counted,
    ends.effects_happen_once,
    ends.checkpoints_count,
    asked.cancels_have_a_reason,
    asked.cancels_count,
    asked.unique_keys_are_unique,
    asked.who_comes_after_waits,
    asked.schedules_fire_once,
    asked.batches_end_once,
)


def check(history: History) -> list[str]:
    """Every breach of every rule; none if all promises were kept."""
    return [f"{rule.__name__}: {breach}" for rule in RULES for breach in rule(history)]
