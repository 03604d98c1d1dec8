"""Statements of the services around the dispatch: due jobs, orphans, retention, counts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from dispatcher.db import Connection
from dispatcher.job import Job
from dispatcher.outcome import OUTLIVED_PROCESS, JobError
from dispatcher.sql import statement


class Orphan(NamedTuple):
    """A running job whose owner is gone."""

    job: Job
    max_attempts: int | None
    timed_out: JobError | None = None  # what was noted of it once it was past its timeout


class Count(NamedTuple):
    """Unfinished jobs of one type in one state."""

    type: str
    state: str
    jobs: int
    oldest_s: float | None


class Pruned(NamedTuple):
    """A page of the pruner's walk."""

    last_id: int | None
    jobs: int
    stored: list[int]  # those removed jobs whose result is in the store
    young: bool | None  # too young for more to expire behind it


def promote_jobs(conn: Connection, batch: int) -> int:
    """Makes due jobs pending; how many."""
    return conn.execute(statement("promote_jobs"), {"batch": batch}).rowcount


def hasten_jobs(conn: Connection) -> int:
    """Makes all scheduled jobs due; how many."""
    row = conn.execute(statement("hasten_jobs")).fetchone()
    return 0 if row is None else int(row[0])


def next_due(conn: Connection) -> tuple[float | None, bool]:
    """Seconds until the earliest scheduled job is due, None without one; and whether there are marks."""
    row = conn.execute(statement("next_due")).fetchone()
    assert row is not None
    return row[0], bool(row[1])


def guard_rescue(conn: Connection, replica: int, incarnation: int) -> bool:
    """Inside a transaction: True while nobody lives under this id and it is the incarnation that was observed."""
    row = conn.execute(statement("bar_replica"), {"replica": replica}).fetchone()
    if row is None or not row[0]:
        return False
    row = conn.execute(statement("guard_rescue"), {"replica": replica, "incarnation": incarnation}).fetchone()
    return row is not None and bool(row[0])


def list_orphans(conn: Connection, owner: int) -> list[Orphan]:
    """The running jobs of a vanished owner, locked for this transaction."""
    orphans = []
    for row in conn.execute(statement("list_orphans"), {"owner": owner}):
        id, type, tenant, priority, attempt, failures, max_attempts, created_at, noted = row
        created: datetime = created_at
        job = Job(id, type, tenant or None, None, priority, attempt, failures, created)
        error = None if noted is None else JobError("timeout", OUTLIVED_PROCESS, noted.get("trace"))
        orphans.append(Orphan(job, max_attempts, error))
    return orphans


def ask_overdue_owners(conn: Connection, grace_s: float) -> list[int]:
    """Asks the owners of overdue jobs to look at them; the owners asked."""
    return [owner for owner, _ in conn.execute(statement("ask_overdue_owners"), {"grace_s": grace_s})]


def prune_jobs(conn: Connection, *, after: int, page: int, keep_succeeded: timedelta, keep_failed: timedelta) -> Pruned:
    """One page of the walk."""
    row = conn.execute(
        statement("prune_jobs"),
        {"after": after, "page": page, "keep_succeeded": keep_succeeded, "keep_failed": keep_failed},
    ).fetchone()
    assert row is not None
    return Pruned._make(row)


def list_vanished(conn: Connection, ids: Sequence[int]) -> list[int]:
    """Of these ids, those of jobs that have been removed."""
    return [id for (id,) in conn.execute(statement("list_vanished"), {"ids": list(ids)})]


def count_jobs(conn: Connection) -> list[Count]:
    """Jobs per type and state, finished well ones left out."""
    return [Count._make(row) for row in conn.execute(statement("count_jobs"))]


def prune_answers(conn: Connection, page: int) -> int:
    """Removes a page of the HTTP API's answers that nobody can ask for any more; how many."""
    return conn.execute(statement("prune_answers"), {"page": page}).rowcount
