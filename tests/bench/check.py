"""What must be true after every drain, or its measure is worth nothing."""

from __future__ import annotations

from tests.bench import jobs
from tests.bench.stage import BenchFailed, Stage

LIMITS = {jobs.LIMITED: 3}


def check(own: Stage, count: int | None) -> None:
    """Each job ran once and is recorded once, and no limit was passed; `count` is all there were, None for some."""
    ran = [int(n) for line in own.noted("ran") for n in line.split(",")]
    if len(set(ran)) != len(ran) or (count is not None and sorted(ran) != list(range(count))):
        raise BenchFailed("some job ran twice or never")
    check_records(own, len(ran))
    for line in own.noted("most"):
        type, most = line.split("=")
        if type in LIMITS and int(most) > LIMITS[type]:
            raise BenchFailed(f"{most} jobs of {type} ran at once, of which {LIMITS[type]} may")


def check_records(own: Stage, count: int) -> None:
    """So many jobs are recorded as succeeded in their first attempt, and all others are pending still."""
    right = own.ask(
        "select count(*) from dispatcher.job"
        " where id > 0 and state = 'succeeded' and attempt = 1 and finished_at is not null"
    )
    begun = own.ask("select count(*) from dispatcher.job where id > 0 and state <> 'pending'")
    if (right, begun) != (count, count):
        raise BenchFailed(
            f"{count} jobs ran, {begun} are not pending any more, {right} are recorded as succeeded at first"
        )
