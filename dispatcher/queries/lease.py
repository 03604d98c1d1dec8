"""Statements of the lease session: wait, take over, beat, sleep, resign, evict."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from dispatcher.blocking import fetch
from dispatcher.db import Connection
from dispatcher.sql import statement


@dataclass(frozen=True, slots=True)
class Holder:
    """The session that holds the lease, as the server shows it; equal values mean that it did nothing in between."""

    pid: int
    backend_start: datetime
    state: str | None
    state_change: datetime | None


def ensure_lease(conn: Connection, name: str) -> int:
    """The number of the named lease."""
    row = conn.execute(statement("ensure_lease"), {"name": name}).fetchone()
    if row is None:  # another session made it in this very instant: it is visible to the next statement
        return ensure_lease(conn, name)
    return int(row[0])


def wait_lease(conn: Connection, lease: int, wait_ms: int) -> tuple[bool, Holder | None]:
    """Waits for the lease inside the server; whether this session holds it, and who does if not."""
    # psycopg would wake up ten times a second to see whether there was a Ctrl-C.
    ((held, pid, start, state, change),) = fetch(conn, "wait_lease", {"lease": lease, "wait_ms": wait_ms}, tuple)
    return bool(held), None if held or pid is None else Holder(pid, start, state, change)


def begin_term(conn: Connection, lease: int, replica: int) -> tuple[int, bool] | None:
    """(term, whether the server's timeline changed since the last one), or None without the lock."""
    return conn.execute(statement("begin_term"), {"lease": lease, "replica": replica}).fetchone()


def note_timeline(conn: Connection, lease: int) -> None:
    """Records the server's timeline: whoever leads from now on need not wait for what its promotion may have lost."""
    conn.execute(statement("note_timeline"), {"lease": lease})


def note_leader(conn: Connection, lease: int, replica: int, term: int) -> None:
    """Records that the leader of this term is at work."""
    conn.execute(statement("note_leader"), {"lease": lease, "replica": replica, "term": term})


def resign_lease(conn: Connection, lease: int) -> None:
    """Gives the lease back, however often the lock was stacked."""
    while (row := conn.execute(statement("resign_lease"), {"lease": lease}).fetchone()) and row[0]:
        pass


def ask_for_handover(conn: Connection, lease: int, replica: int) -> bool:
    """Asks the leader to resign if this replica can run all that it can, and more; whether it did."""
    return conn.execute(statement("ask_for_handover"), {"lease": lease, "replica": replica}).fetchone() is not None


def evict_holder(conn: Connection, lease: int, holder: Holder) -> bool:
    """Ends the holder's session if it is still exactly the one that was seen."""
    row = conn.execute(
        statement("evict_holder"),
        {
            "lease": lease,
            "pid": holder.pid,
            "backend_start": holder.backend_start,
            "state_change": holder.state_change,
        },
    ).fetchone()
    return row is not None and bool(row[0])


def beat(conn: Connection, replica: int, *, running: bool) -> bool:
    """A sign of life, of a replica that runs jobs or of one that runs none; False once its row has gone."""
    row = conn.execute(statement("beat"), {"replica": replica, "running": running}).fetchone()
    return row is not None and bool(row[0])


def stay_awake(conn: Connection, lease: int) -> bool:
    """Takes the awake lock; False where an enqueuer holds it for its commit."""
    row = conn.execute(statement("stay_awake"), {"lease": lease}).fetchone()
    return row is not None and bool(row[0])


def doze(conn: Connection, lease: int, *, give_back: bool) -> bool:
    """Gives the awake lock back if it is held; True where the leader may sleep after one more look."""
    row = conn.execute(statement("doze"), {"lease": lease, "give_back": give_back}).fetchone()
    return row is not None and bool(row[0])
