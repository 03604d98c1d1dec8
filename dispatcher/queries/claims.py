"""Statements that move jobs to running, and tell what runs."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from dispatcher.blocking import fetch
from dispatcher.db import Connection
from dispatcher.rules import Control, TypeTenant
from dispatcher.sql import statement


class Lane(NamedTuple):
    """Jobs that queue behind one another: one type, one tenant; with aging on also one priority."""

    type: str
    tenant: str
    priority: int | None = None


class Cursor(NamedTuple):
    """The last job claimed in a lane; the next claim starts behind it."""

    priority: int
    id: int


START = Cursor(-32769, 0)
LAST_PRIORITY = 32767
PAGE = 20_000  # lanes in one statement, which takes about 0.1 s and must end well within the lease


class Take(NamedTuple):
    """How much to claim of a lane, from where on, and up to which priority. `most` is what its type may have in all."""

    lane: Lane
    take: int
    cursor: Cursor = START
    most: int = 1_000_000
    until: int = LAST_PRIORITY


class Claimed(NamedTuple):
    """A row that the claim returned, in the statement's order."""

    id: int
    type: str
    tenant: str
    priority: int
    attempt: int
    failures: int
    max_attempts: int | None
    timeout_s: float | None
    created_at: datetime
    payload: str
    checkpoint: str | None
    waited_s: float
    claim: int
    parent_id: int | None = None


class FoundLane(NamedTuple):
    """A lane, its first job as (priority, id) with the priority that counts by now, and the cursor before it."""

    lane: Lane
    head: tuple[float, int]
    start: Cursor = START


def list_lanes(conn: Connection, skipped: Collection[str] = ()) -> list[FoundLane]:
    """Every lane with a pending job; of each type to be skipped the first one only."""
    found: list[FoundLane] = []
    params = {"after_type": "", "after_tenant": "", "skipped": list(skipped), "most": PAGE}
    while True:
        rows = conn.execute(statement("list_lanes"), params).fetchall()
        found += [FoundLane(Lane(type, tenant), (priority, id)) for type, tenant, priority, id in rows]
        if len(rows) < PAGE:
            return found
        params["after_type"], params["after_tenant"], *_ = rows[-1]


def list_aged_lanes(conn: Connection, aging_s: float, skipped: Collection[str] = ()) -> list[FoundLane]:
    """The same with a lane for each priority, whose jobs gain a point for each `aging_s` that they wait."""
    found: list[FoundLane] = []
    params: dict[str, object] = {"after_type": "", "after_tenant": "", "after_priority": START.priority}
    params |= {"skipped": list(skipped), "most": PAGE, "aging_s": aging_s}
    while True:
        rows = conn.execute(statement("list_aged_lanes"), params).fetchall()
        found += [
            FoundLane(Lane(type, tenant, priority), (aged, id), Cursor(priority, 0))
            for type, tenant, priority, id, aged in rows
        ]
        if len(rows) < PAGE:
            return found
        params["after_type"], params["after_tenant"], params["after_priority"], *_ = rows[-1]


def share_lanes(conn: Connection, takes: Sequence[Take], *, room: int, depth: int) -> list[tuple[Lane, int]]:
    """How many of each lane's first jobs come into the room, by priority, turn and age, at most `depth` of a lane."""
    params = _columns(takes) | {"mosts": [take.most for take in takes], "room": room, "depth": depth}
    rows = conn.execute(statement("share_lanes"), params)
    return [(Lane(type, tenant), take) for type, tenant, take in rows]


def share_aged_lanes(
    conn: Connection, takes: Sequence[Take], *, room: int, depth: int, aging_s: float
) -> list[tuple[Lane, int]]:
    """The same by the priorities that jobs have by now."""
    params = _columns(takes) | {"mosts": [take.most for take in takes], "room": room, "depth": depth}
    rows = conn.execute(statement("share_aged_lanes"), params | _untils(takes) | {"aging_s": aging_s})
    return [(Lane(type, tenant, priority), take) for type, tenant, priority, take in rows]


def claim_jobs(
    conn: Connection, takes: Sequence[Take], *, owner: int, term: int, free_only: bool = True
) -> list[Claimed]:
    """Claims up to `take` jobs of each lane behind its cursor.

    Passes by rows that somebody holds locked; without free_only it waits for them up to lock_timeout, and is cheaper.
    """
    params = _columns(takes) | _untils(takes) | {"owner": owner, "term": term}
    return fetch(conn, "claim_free_jobs" if free_only else "claim_jobs", params, Claimed._make)


def prepare(conn: Connection, owner: int) -> None:
    """Runs the statements with which a term begins so that they find nothing to do."""
    list_controls(conn)
    count_running(conn, owner)
    conn.execute(
        statement("list_lanes"), {"after_type": "", "after_tenant": "", "skipped": list[str](), "most": 0}
    ).fetchall()
    for free_only in (True, False):
        claim_jobs(conn, [], owner=owner, term=0, free_only=free_only)


def list_controls(conn: Connection) -> list[Control]:
    """What operators said about types."""
    return [Control._make(row) for row in conn.execute(statement("list_controls"))]


def note_bounds(
    conn: Connection, *, lease: int, replica: int, max_running: int | None, sizes: Mapping[str, int]
) -> None:
    """Shows what this leader goes by: `sizes` are those of its pools."""
    params = {"lease": lease, "replica": replica, "max_running": max_running, "sizes": json.dumps(sizes)}
    conn.execute(statement("note_bounds"), params)


def note_throttle(conn: Connection, seconds: Mapping[str, float]) -> None:
    """Shows for how long rates hold types back."""
    params = {"types": list(seconds), "seconds": list(seconds.values())}
    conn.execute(statement("note_throttle"), params)


def count_running(conn: Connection, owner: int) -> dict[TypeTenant, int]:
    """Running jobs per type and tenant of everybody but this owner."""
    rows = conn.execute(statement("count_running"), {"owner": owner})
    return {(type, tenant): count for type, tenant, count in rows}


def own_running(conn: Connection, owner: int) -> list[tuple[int, int, TypeTenant]]:
    """(id, attempt, (type, tenant)) of what the database believes this owner to run."""
    rows = conn.execute(statement("own_running"), {"owner": owner})
    return [(id, attempt, (type, tenant)) for id, attempt, type, tenant in rows]


def list_disowned(conn: Connection, owner: int, attempts: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
    """Those of these attempts that the database does not know to be this owner's."""
    rows = conn.execute(
        statement("list_disowned"),
        {"owner": owner, "ids": [id for id, _ in attempts], "attempts": [attempt for _, attempt in attempts]},
    )
    return {(id, attempt) for id, attempt in rows}


def release_jobs(conn: Connection, owner: int, attempts: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
    """Gives claimed, unstarted jobs back; the attempts that were given back (a locked row was not)."""
    rows = conn.execute(
        statement("release_jobs"),
        {"owner": owner, "ids": [id for id, _ in attempts], "attempts": [attempt for _, attempt in attempts]},
    )
    return {(id, attempt) for id, attempt in rows}


def _columns(takes: Sequence[Take]) -> dict[str, list[Any]]:
    return {
        "types": [take.lane.type for take in takes],
        "tenants": [take.lane.tenant for take in takes],
        "takes": [take.take for take in takes],
        "after_priorities": [take.cursor.priority for take in takes],
        "after_ids": [take.cursor.id for take in takes],
    }


def _untils(takes: Sequence[Take]) -> dict[str, list[int]]:
    return {"until_priorities": [take.until if (p := take.lane.priority) is None else p for take in takes]}
