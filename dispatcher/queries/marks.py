"""Statements that work off the marks which ended jobs leave for their batches and for the jobs that wait for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from dispatcher.db import Connection
from dispatcher.sql import statement

COUNTED = ("succeeded", "partial", "failed", "canceled")


class Mark(NamedTuple):
    """A job that has ended (`became`), or that is to be looked at (None)."""

    id: int
    job_id: int
    parent_id: int | None
    became: str | None


def take_follow_lock(conn: Connection) -> bool:
    """Inside a transaction: False while another replica works marks off."""
    row = conn.execute(statement("take_follow_lock")).fetchone()
    return row is not None and bool(row[0])


def take_marks(conn: Connection, *, after: int, batch: int) -> list[Mark]:
    """Marks behind `after`, which go with the transaction."""
    return [Mark._make(row) for row in conn.execute(statement("take_marks"), {"after": after, "batch": batch})]


def put_marks(conn: Connection, marks: Sequence[Mark]) -> None:
    """Marks that are to be taken again."""
    conn.execute(
        statement("put_marks"),
        {
            "job_ids": [mark.job_id for mark in marks],
            "parent_ids": [mark.parent_id for mark in marks],
            "became": [mark.became for mark in marks],
        },
    )


def count_children(conn: Connection, ended: Mapping[int, Counter[str]]) -> set[int]:
    """Adds ended children, by final state, to their batches; the batches that were locked, to which it added none."""
    columns = {state: [counts[state] for counts in ended.values()] for state in COUNTED}
    counted = _ids(conn, "count_children", ids=list(ended), **columns)
    missed = ended.keys() - counted
    return _ids(conn, "find_batches", ids=list(missed)) if missed else set()


def resolve_dependencies(conn: Connection, *, ended: Sequence[int], looked: Sequence[int], batch: int) -> list[int]:
    """Lets those who wait for `ended`, and the waiting `looked`, see who has ended; them, one for each edge.

    At most `batch` of either.
    """
    params = {"ended": list(ended), "looked": list(looked), "batch": batch}
    return [id for (id,) in conn.execute(statement("resolve_dependencies"), params)]


def release_dependents(conn: Connection, ids: Collection[int]) -> tuple[dict[int, str], set[int]]:
    """Lets go those of these jobs that need not wait any longer: (their new states, those whose rows were locked)."""
    ready: dict[int, int | None] = dict(conn.execute(statement("list_ready"), {"ids": list(ids)}).fetchall())
    if not ready:
        return {}, set()
    params = {"ids": list(ready), "broken_by": list(ready.values())}
    released: dict[int, str] = dict(conn.execute(statement("release_dependents"), params).fetchall())
    return released, ready.keys() - released.keys()


def end_batches(conn: Connection, ids: Collection[int]) -> tuple[dict[int, str], set[int]]:
    """Ends those of these batches whose children have all ended: (their final states, those whose rows were locked)."""
    complete = _ids(conn, "list_complete_batches", ids=list(ids))
    if not complete:
        return {}, set()
    ended: dict[int, str] = dict(conn.execute(statement("end_batches"), {"ids": list(complete)}).fetchall())
    return ended, complete - ended.keys()


def wake_leaders(conn: Connection) -> None:
    """Tells every leader that sleeps."""
    conn.execute(statement("wake_leaders"))


def _ids(conn: Connection, name: str, **params: object) -> set[int]:
    return {id for (id,) in conn.execute(statement(name), params)}
