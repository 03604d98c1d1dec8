"""Statements that move jobs to running, and tell what runs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from dispatcher.db import Connection
from dispatcher.sql import statement


class Lane(NamedTuple):
    """Jobs that queue behind one another: one type, one tenant."""

    type: str
    tenant: str


class Cursor(NamedTuple):
    """The last job claimed in a lane; the next claim starts behind it."""

    priority: int
    id: int


START = Cursor(-32769, 0)


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
    """A lane, and its first job as (priority, id)."""

    lane: Lane
    head: tuple[int, int]


def list_lanes(conn: Connection) -> list[FoundLane]:
    """Every lane with a pending job."""
    rows = conn.execute(statement("list_lanes"))
    return [FoundLane(Lane(type, tenant), (priority, id)) for type, tenant, priority, id in rows]


def share_lanes(
    conn: Connection, takes: Sequence[tuple[Lane, int, Cursor]], *, room: int, depth: int
) -> list[tuple[Lane, int]]:
    """How many of each lane's first jobs come into the room, by priority, turn and age, at most `depth` of a lane.

    A type's lanes share its take.
    """
    rows = conn.execute(
        statement("share_lanes"),
        {
            "types": [lane.type for lane, _, _ in takes],
            "tenants": [lane.tenant for lane, _, _ in takes],
            "takes": [take for _, take, _ in takes],
            "after_priorities": [cursor.priority for _, _, cursor in takes],
            "after_ids": [cursor.id for _, _, cursor in takes],
            "room": room,
            "depth": depth,
        },
    )
    return [(Lane(type, tenant), take) for type, tenant, take in rows]


def claim_jobs(conn: Connection, takes: Sequence[tuple[Lane, int, Cursor]], *, owner: int, term: int) -> list[Claimed]:
    """Claims up to `take` jobs of each lane behind its cursor."""
    rows = conn.execute(
        statement("claim_jobs"),
        {
            "types": [lane.type for lane, _, _ in takes],
            "tenants": [lane.tenant for lane, _, _ in takes],
            "takes": [take for _, take, _ in takes],
            "after_priorities": [cursor.priority for _, _, cursor in takes],
            "after_ids": [cursor.id for _, _, cursor in takes],
            "owner": owner,
            "term": term,
        },
    ).fetchall()
    return [Claimed._make(row) for row in rows]


def count_running(conn: Connection, owner: int) -> dict[str, int]:
    """Running jobs per type of everybody but this owner."""
    return dict(conn.execute(statement("count_running"), {"owner": owner}).fetchall())


def own_running(conn: Connection, owner: int) -> list[tuple[int, int, str]]:
    """(id, attempt, type) of what the database believes this owner to run."""
    return conn.execute(statement("own_running"), {"owner": owner}).fetchall()


def release_jobs(conn: Connection, owner: int, attempts: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
    """Gives claimed, unstarted jobs back; the attempts that were given back (a locked row was not)."""
    rows = conn.execute(
        statement("release_jobs"),
        {"owner": owner, "ids": [id for id, _ in attempts], "attempts": [attempt for _, attempt in attempts]},
    )
    return {(id, attempt) for id, attempt in rows}
