"""Ended jobs by a filter, as operations: counted, run again, removed; in steps, so that no transaction is long."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import NamedTuple

from dispatcher.filters import MAX_ID
from dispatcher.queries.operation import Operation, Query


class Retried(NamedTuple):
    """How many jobs run again, and how many that matched were passed by."""

    retried: int
    skipped: int


class Purged(NamedTuple):
    """How many jobs were removed, and how many that matched were passed by."""

    purged: int
    skipped: int


def count_ended(filters: str) -> Operation[int]:
    """How many match; `filters` is JSON text, here and below."""
    rows = yield Query("count_ended", {"filter": filters}, reads=True)
    return int(rows[0][0])


def retry_where(filters: str, limit: int | None) -> Operation[Retried]:
    """Runs them again, at most `limit`."""
    return Retried._make((yield from _steps("retry_some", filters, limit)))


def purge(filters: str, limit: int | None) -> Operation[Purged]:
    """Removes them, at most `limit`."""
    return Purged._make((yield from _steps("purge_some", filters, limit)))


def _fixed(filters: str) -> Operation[str]:
    """How long ago something was is counted once, from the database's time: not anew in each step."""
    body = json.loads(filters)
    if ago := {name: body[name] for name in ("since", "until") if isinstance(body.get(name), int | float)}:
        now: datetime = (yield Query("get_time", reads=True))[0][0]
        body |= {name: (now - timedelta(seconds=seconds)).isoformat() for name, seconds in ago.items()}
    return json.dumps(body)


def _steps(name: str, filters: str, limit: int | None) -> Operation[tuple[int, int]]:
    filters = yield from _fixed(filters)
    most, done, skipped = MAX_ID if limit is None else limit, 0, 0
    before: int | None = MAX_ID
    while before is not None and done < most:
        rows = yield Query(name, {"filter": filters, "before": before, "most": most - done})
        more, passed_by, before = rows[0]
        done, skipped = done + more, skipped + passed_by
    return done, skipped
