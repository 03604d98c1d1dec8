"""Statements that record how attempts ended."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from psycopg import Cursor
from psycopg.rows import TupleRow

from dispatcher.db import Connection, array
from dispatcher.job import State
from dispatcher.outcome import Outcome
from dispatcher.sql import statement

Attempt = tuple[int, int]

Recorded = dict[Attempt, bool]
"""The attempts that were recorded, and whether each may have left a mark."""

PLAIN = Outcome(0, 0, State.SUCCEEDED)[2:]
"""All that is to be said of a job that succeeded and left no result."""


def finish_jobs(conn: Connection, owner: int, outcomes: Sequence[Outcome], *, free_only: bool) -> Recorded:
    """Records final outcomes of what `owner` ran; the attempts it recorded, and whether each may have left a mark for a
    batch or others.

    Waits for locked rows up to lock_timeout, unless free_only.
    """
    if not free_only and all(outcome[2:] == PLAIN for outcome in outcomes):
        return _finish_plain(conn, owner, outcomes)
    rows = conn.execute(
        statement("finish_free_jobs" if free_only else "finish_jobs"),
        {
            "owner": owner,
            "ids": array([o.job_id for o in outcomes]),
            "attempts": array([o.attempt for o in outcomes]),
            "states": array([o.state for o in outcomes]),
            "failures": array([o.failures for o in outcomes]),
            "result_urls": [o.result_url for o in outcomes] if any(o.result_url for o in outcomes) else None,
            "results": _json_array([o.result for o in outcomes]),
            "errors": _json_array([o.errors for o in outcomes]),
        },
    )
    return _recorded(rows)


def reschedule_jobs(conn: Connection, owner: int, outcomes: Sequence[Outcome]) -> Recorded:
    """Sends jobs back to scheduled or pending; the attempts it recorded, and whether each may have left a mark."""
    rows = conn.execute(
        statement("reschedule_jobs"),
        {
            "owner": owner,
            "ids": array([o.job_id for o in outcomes]),
            "attempts": array([o.attempt for o in outcomes]),
            "delays_s": array([o.delay_s or 0.0 for o in outcomes]),
            "failures": array([o.failures for o in outcomes]),
            "errors": _json_array([o.errors for o in outcomes]),
        },
    )
    return _recorded(rows)


def postpone_jobs(conn: Connection, owner: int, attempts: Sequence[Attempt], delay_s: float) -> set[Attempt]:
    """Schedules jobs that still run in this process, which ends before `delay_s` is over; those that it could."""
    rows = conn.execute(
        statement("postpone_jobs"),
        {
            "owner": owner,
            "ids": array([id for id, _ in attempts]),
            "attempts": array([attempt for _, attempt in attempts]),
            "delay_s": delay_s,
        },
    )
    return set(rows.fetchall())


def list_still_running(conn: Connection, owner: int, attempts: Sequence[Attempt]) -> set[Attempt]:
    """Those whose row still says that `owner` runs them."""
    rows = conn.execute(
        statement("list_still_running"),
        {
            "owner": owner,
            "ids": array([id for id, _ in attempts]),
            "attempts": array([attempt for _, attempt in attempts]),
        },
    )
    return set(rows.fetchall())


def list_recorded(conn: Connection, owner: int, outcomes: Sequence[Outcome]) -> set[Attempt]:
    """Of the attempts whose answer was lost, those that were recorded as they were to be."""
    rows = conn.execute(
        statement("list_recorded"),
        {
            "owner": owner,
            "ids": array([o.job_id for o in outcomes]),
            "attempts": array([o.attempt for o in outcomes]),
            "states": array([o.state for o in outcomes]),
            "failures": array([o.failures for o in outcomes]),
        },
    )
    return set(rows.fetchall())


def drop_claims(conn: Connection, claims: Sequence[int], *, doubted: Collection[int]) -> set[int]:
    """Forgets lists of which no job runs any more, after a look at the jobs of those in doubt; those it forgot."""
    params = {"claims": array(claims), "doubted": array([claim for claim in claims if claim in doubted])}
    return {claim for (claim,) in conn.execute(statement("drop_claims"), params)}


def write_progress(conn: Connection, owner: int, progress: dict[Attempt, tuple[float, str | None]]) -> set[Attempt]:
    """The latest progress of running attempts; those whose rows took it."""
    rows = conn.execute(
        statement("write_progress"),
        {
            "owner": owner,
            "ids": [id for id, _ in progress],
            "attempts": [attempt for _, attempt in progress],
            "percents": [percent for percent, _ in progress.values()],
            "messages": [message for _, message in progress.values()],
        },
    )
    return set(rows.fetchall())


def mark_timed_out(conn: Connection, owner: int, errors: dict[Attempt, str]) -> set[Attempt]:
    """Shows that these attempts are past their timeout while their threads are not back; those whose rows took it."""
    rows = conn.execute(
        statement("mark_timed_out"),
        {
            "owner": owner,
            "ids": array([id for id, _ in errors]),
            "attempts": array([attempt for _, attempt in errors]),
            "errors": _json_array(list(errors.values())),
        },
    )
    return set(rows.fetchall())


def list_canceled(conn: Connection, owner: int, ids: Sequence[int]) -> list[int]:
    """Of the jobs that run here, those that somebody asked to stop."""
    return [id for (id,) in conn.execute(statement("list_canceled"), {"owner": owner, "ids": list(ids)})]


def wake_leader(conn: Connection, lease: int) -> None:
    """Tells the leader that a slot has become free elsewhere."""
    conn.execute(statement("wake_leader"), {"lease": lease})


def tell_events(conn: Connection, payloads: Sequence[str]) -> None:
    """Tells whoever watches jobs which of them have changed."""
    conn.execute(statement("tell_events"), {"payloads": payloads})


def _finish_plain(conn: Connection, owner: int, outcomes: Sequence[Outcome]) -> Recorded:
    ids, attempts = [outcome.job_id for outcome in outcomes], [outcome.attempt for outcome in outcomes]
    params = {"owner": owner, "ids": array(ids), "attempts": array(attempts)}
    row = conn.execute(statement("finish_plain_jobs"), params).fetchone()
    assert row is not None  # an aggregate's
    all_done, marked, found, found_attempts = row
    if not all_done:
        ids, attempts = found or [], found_attempts or []
    return dict.fromkeys(zip(ids, attempts, strict=True), bool(marked))


def _recorded(rows: Cursor[TupleRow]) -> Recorded:
    return {(id, attempt): marked for id, attempt, marked in rows}


def _json_array(texts: Sequence[str | None]) -> str | None:
    """JSON texts as one JSON array, which needs no escaping; None where there is nothing in it."""
    if not any(texts):
        return None
    return f"[{','.join(text or 'null' for text in texts)}]"
