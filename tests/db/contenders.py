"""Replicas without a daemon: a row, and a lease that a test steps by hand."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator

import psycopg

from dispatcher.db import Connection, SessionLimits, connect_session
from dispatcher.metrics import Metrics
from dispatcher.queries import replicas
from dispatcher.queries.replicas import Process
from dispatcher.services.lease import Lease

NOWHERE = Process("elsewhere", 1, None, None, None, None)  # on another host: nothing proves its death

HELD = """
select count(*) from pg_locks l
where l.locktype = 'advisory' and l.granted and l.pid = %s and l.classid = dispatcher.lease_lock()::oid
"""


@dataclasses.dataclass
class Clock:
    """A clock that a test sets."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def register(conn: Connection, *, lease: int = 1, process: Process = NOWHERE) -> int:
    """A new replica's row."""
    return replicas.register_replica(conn, lease=lease, process=process, version="test", types=[], remote_types=[])


@contextlib.contextmanager
def contender(
    dsn: str,
    replica: int,
    *,
    number: int = 1,
    heartbeat_s: float = 0.1,
    duration_s: float = 5.0,
    limits: SessionLimits | None = None,
    clock: Clock | None = None,
) -> Iterator[Lease]:
    """A lease as the daemon makes it, not yet connected."""
    limits = limits or SessionLimits(statement_s=0.6 * duration_s, idle_s=duration_s, silence_s=duration_s)
    options = {} if clock is None else {"clock": clock}
    lease = Lease(
        open_session=lambda: connect_session(dsn, name=f"lease {replica}", limits=limits),
        number=number,
        replica=replica,
        heartbeat_s=heartbeat_s,
        duration_s=duration_s,
        orphan_after_s=30.0,
        metrics=Metrics(),
        stop=threading.Event(),
        **options,
    )
    try:
        yield lease
    finally:
        lease.drop()


def backend(lease: Lease) -> int:
    """The process id of its session on the server."""
    assert lease.conn is not None
    return lease.conn.info.backend_pid


def beat(lease: Lease) -> None:
    """A beat, due or not."""
    lease._last_beat = float("-inf")
    lease.beat()


def held_locks(conn: Connection, lease: Lease | int) -> int:
    """How many lease locks a session holds (a stacked lock shows as one)."""
    pid = lease if isinstance(lease, int) else backend(lease)
    row = conn.execute(HELD, [pid]).fetchone()
    assert row is not None
    return int(row[0])


def until(conn: Connection, question: str, *params: object, timeout_s: float = 10.0) -> bool:
    """Asks the server until it answers yes; False if it has not in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        row = conn.execute(question.encode(), params).fetchone()
        if row is not None and row[0]:
            return True
        time.sleep(0.002)
    return False


def gone(conn: Connection, pid: int) -> bool:
    """Waits until a backend has ended."""
    return until(conn, "select not exists (select from pg_stat_activity where pid = %s)", pid)


def waits(conn: Connection, pid: int, event: str) -> bool:
    """Waits until a backend itself waits for `event`, as pg_stat_activity names it."""
    return until(conn, "select exists (select from pg_stat_activity where pid = %s and wait_event = %s)", pid, event)


def closed(conn: psycopg.Connection) -> bool:
    """Whether the server has ended this session: asked of the session itself."""
    try:
        conn.execute("select 1")
    except psycopg.Error:
        return conn.broken
    return False
