"""What happened in a storm, in memory: what executors wrote, what was committed, what the database has.

Nothing here is a guess. That an attempt ran at an instant is known only between two lines that it wrote: its start and
the last one. One that was killed has no end; it may have run a little longer than its last line says.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

from tests.events import Event

FINAL = frozenset(("succeeded", "partial", "failed", "canceled"))


@dataclass(frozen=True, slots=True)
class Attempt:
    """One execution of a job, seen from outside: seconds on the host's monotonic clock."""

    job: int
    attempt: int
    pid: int
    start: float
    last: float
    """When it was last known to run: with its outcome still to come, if it completes itself in a transaction."""
    how: str | None
    """How it ended by its own account, None if it never said."""


@dataclass(frozen=True, slots=True)
class Row:
    """A job's row at the end."""

    id: int
    type: str
    tenant: str | None
    state: str
    attempt: int
    failures: int
    max_attempts: int
    unique_key: str | None
    parent_id: int | None
    due: datetime | None
    payload: dict[str, Any]
    result: Any
    errors: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a job's state or attempt, written by a trigger in the same transaction; `before` None: enqueued."""

    number: int
    job: int
    before: str | None
    after: str
    attempt: int
    at: datetime
    """The database's clock while the statement ran, before its commit."""
    due: datetime | None
    """The job's `run_at` by then; None: at once."""
    session: str
    """Who made it: the job's owner, and the server's process."""
    term: int | None
    """Of a claim: the term that the leader takes it to be."""


@dataclass(frozen=True, slots=True)
class Enqueued:
    """An enqueueing that was answered, with the id that was the answer. Its transaction was committed."""

    id: int
    at: float
    """Before it was asked for, on the executors' clock."""
    type: str
    n: int | None = None
    """The number in its payload."""
    delay_s: float = 0.0
    key: str | None = None
    """A unique key: then the answer may be a job that had been there before."""
    jobs: int = 0
    """How many a batch has."""


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A batch at the end."""

    id: int
    state: str
    total: int
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class Limits:
    """What may run at once, and start in a second."""

    overall: int
    types: dict[str, int] = field(default_factory=dict)
    tenants: dict[str, int] = field(default_factory=dict)
    rates: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Starts a second, and how many at once, by type."""


@dataclass(frozen=True)
class History:
    """All that the checker looks at."""

    events: Sequence[Event]
    rows: dict[int, Row]
    changes: Sequence[Change]
    limits: Limits
    enqueued: Sequence[Enqueued] = ()
    canceled: frozenset[int] = frozenset()
    """Jobs that somebody tried to cancel, whether or not that was answered."""
    canceled_at: dict[int, float] = field(default_factory=dict)
    """When the first cancel of a job was answered, on the executors' clock."""
    retried: dict[int, int] = field(default_factory=dict)
    """How often somebody tried to retry a job and was not refused."""
    effects: Sequence[tuple[int, int]] = ()
    """(job, attempt) of each row that a job wrote together with its outcome."""
    parts: Sequence[tuple[int, int]] = ()
    """(job, part) of each row that a job wrote together with its checkpoint."""
    batches: Sequence[BatchRow] = ()
    clock_offset_s: float = 0.0
    """What is added to the executors' clock to come to the database's, in seconds since 1970."""
    due: dict[str, Sequence[datetime]] = field(default_factory=dict)
    """Each due time for which a schedule must have fired."""
    timeouts_s: dict[str, float] = field(default_factory=dict)
    """Of the types whose jobs may run out of time in a storm."""

    @cached_property
    def attempts(self) -> dict[int, list[Attempt]]:
        """Of each job, by start."""
        return attempts_of(self.events)

    @cached_property
    def changes_of(self) -> dict[int, list[Change]]:
        """Of each job, in the order in which they were made."""
        grouped: dict[int, list[Change]] = defaultdict(list)
        for change in sorted(self.changes, key=lambda change: change.number):
            grouped[change.job].append(change)
        return grouped

    @cached_property
    def claims(self) -> list[Change]:
        """By which jobs began to run, in the order in which they were made; a batch is never claimed."""
        changes = sorted(self.changes, key=lambda change: change.number)
        return [c for c in changes if c.after == "running" != c.before and self.type_of(c.job) != "batch"]

    @cached_property
    def ends(self) -> dict[tuple[int, int], Change]:
        """Of each attempt, by job and number: how it was recorded that it runs no more."""
        return {
            (job, two.attempt): two
            for job, changes in self.changes_of.items()
            for one, two in itertools.pairwise(changes)
            if one.after == "running" != two.after and self.type_of(job) != "batch"
        }

    def type_of(self, job: int) -> str:
        """Of one that may have gone."""
        return self.rows[job].type if job in self.rows else "unknown"

    def seen_at(self, at: datetime) -> float:
        """A time of the database's on the executors' clock."""
        return at.timestamp() - self.clock_offset_s


def attempts_of(events: Iterable[Event]) -> dict[int, list[Attempt]]:
    """The attempts that the events tell of. A second start of the same attempt is an attempt of its own."""
    open_: dict[tuple[int, int, int], list[Event]] = {}
    finished: list[list[Event]] = []
    for event in events:
        key = (event.job, event.attempt, event.pid)
        if event.what == "start" and key in open_:
            finished.append(open_.pop(key))
        open_.setdefault(key, []).append(event)
    grouped: dict[int, list[Attempt]] = defaultdict(list)
    for lines in (*finished, *open_.values()):
        first, ended = lines[0], [line for line in lines if line.what == "end"]
        how = ended[-1].why if ended else None
        # What `ctx.complete` has committed has ended, though its thread has still to come back.
        last = max(line.t for line in lines if how != "complete" or line.what != "end")
        grouped[first.job].append(Attempt(first.job, first.attempt, first.pid, first.t, last, how))
    for attempts in grouped.values():
        attempts.sort(key=lambda attempt: attempt.start)
    return grouped
