"""Jobs that note when their first line runs."""

from __future__ import annotations

from tests.bench import jobs
from tests.bench.stage import Stage


def mark(own: Stage, n: int) -> int:
    """Enqueues one; its id."""
    return own.client.enqueue(jobs.MARK, {"n": n})


def wait_for(own: Stage, n: int) -> float:
    """When it ran, in monotonic seconds."""
    return float(own.until(f"job {n}", lambda: own.noted(str(n)))[0])


def starts(own: Stage) -> list[tuple[int, float]]:
    """Number and time of all that have run."""
    return [(int(note[0]), float(note[1])) for note in own.notes()]
