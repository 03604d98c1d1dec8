"""Statements about schedules: the leader's, and the clients' as operations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from dispatcher.db import Connection
from dispatcher.errors import InvalidSchedule, ScheduleNotFound
from dispatcher.queries.operation import Operation, Query
from dispatcher.sql import statement

_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,200}")


@dataclass(frozen=True, slots=True)
class ScheduleInfo:
    """A schedule as it is now. Times are aware."""

    name: str
    cron: str
    zone: str
    type: str
    payload: dict[str, Any]
    options: dict[str, Any]
    catch_up: str
    """What becomes of due times that were missed: skip, one or all."""
    paused_at: datetime | None
    paused_by: str | None
    next_at: datetime | None
    """None while the leader has yet to work it out."""
    last_at: datetime | None
    """The due time that was fired last."""
    last_job_id: int | None
    error: str | None
    """Why it does not go on; another add, or resume, starts it again."""
    created_at: datetime
    changed_at: datetime
    changed_by: str


class Due(NamedTuple):
    """A schedule as the leader looks at it; `next_at` and `in_s` None: to be worked out."""

    name: str
    cron: str
    zone: str
    catch_up: str
    type: str
    next_at: datetime | None
    since: datetime
    now: datetime
    in_s: float | None
    changed_at: datetime


def list_due(conn: Connection, batch: int, besides: Sequence[str] = ()) -> list[Due]:
    """The next ones, those to be worked out first."""
    params = {"batch": batch, "besides": list(besides)}
    return [Due._make(row) for row in conn.execute(statement("list_due_schedules"), params)]


def plan_schedule(conn: Connection, due: Due, next_at: datetime) -> bool:
    """Sets the first due time; False where the row was locked or changed."""
    params = {"name": due.name, "cron": due.cron, "zone": due.zone, "next_at": next_at}
    return conn.execute(statement("plan_schedule"), params).rowcount == 1


def fire_schedule(conn: Connection, due: Due, fires: Sequence[datetime], next_at: datetime) -> int | None:
    """Enqueues a job for each; how many are new. None where the row was locked, changed or fired by another leader."""
    params = {"name": due.name, "cron": due.cron, "zone": due.zone, "due": due.next_at}
    row = conn.execute(statement("fire_schedule"), {**params, "fires": list(fires), "next_at": next_at}).fetchone()
    return None if row is None else int(row[0])


def stop_schedule(conn: Connection, due: Due, error: str) -> bool:
    """Says why it does not go on; False where the row was locked or changed."""
    params = {"name": due.name, "changed_at": due.changed_at, "due": due.next_at, "error": error}
    return conn.execute(statement("stop_schedule"), params).rowcount == 1


def count_stopped(conn: Connection) -> int:
    """Schedules that an error keeps from going on."""
    row = conn.execute(statement("count_stopped_schedules")).fetchone()
    assert row is not None
    return int(row[0])


def list_schedules() -> Operation[list[ScheduleInfo]]:
    """All, by name."""
    rows = yield Query("list_schedules", reads=True)
    return [ScheduleInfo(*row) for row in rows]


def add_schedule(name: str, cron: str, type: str, payload: str, options: str) -> Operation[None]:
    """Adds or changes one; `payload` and `options` are JSON texts."""
    yield Query(
        "add_schedule", {"name": new_name(name), "cron": cron, "type": type, "payload": payload, "options": options}
    )


def remove_schedule(name: str) -> Operation[None]:
    """Removes one."""
    yield Query("remove_schedule", {"name": known_name(name)})


def pause_schedule(name: str) -> Operation[bool]:
    """Whether it was not paused before."""
    rows = yield Query("pause_schedule", {"name": known_name(name)})
    return bool(rows[0][0])


def resume_schedule(name: str) -> Operation[bool]:
    """Whether it was paused, or stopped by an error."""
    rows = yield Query("resume_schedule", {"name": known_name(name)})
    return bool(rows[0][0])


def trigger_schedule(name: str) -> Operation[int]:
    """The job's id."""
    rows = yield Query("trigger_schedule", {"name": known_name(name)})
    return int(rows[0][0])


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def new_name(name: Any) -> str:
    """A name that a schedule may be given; raises InvalidSchedule."""
    if not _is_name(name):
        raise InvalidSchedule("a schedule is named by 1 to 200 letters, digits and the signs _ . : / -")
    return str(name)


def known_name(name: Any) -> str:
    """A name that a schedule may have; raises ScheduleNotFound. Half a surrogate, say, could not even be asked for."""
    if not _is_name(name):
        raise ScheduleNotFound(f"there is no schedule {name!r:.200}")
    return str(name)
