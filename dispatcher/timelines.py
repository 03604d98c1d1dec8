"""Timelines: a replica goes by the highest timeline that it has seen, and never back to a lower one.

A promotion begins a new timeline. An old primary that was cut off, or that comes back, may still take writes on the
old one: what is written there is lost to the others. Of two servers that take writes, the one on the higher timeline
is the primary. So all sessions of a replica are on one timeline; when one of them finds a higher one, the rest is cut.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from weakref import WeakSet

import psycopg
from psycopg import conninfo

from dispatcher.db import Connection, SessionLimits, check_dsn, connect_session, cut, first_line, pin, set_up
from dispatcher.errors import DatabaseUnavailable, DispatcherError
from dispatcher.sql import statement

log = logging.getLogger("dispatcher.timelines")

LOOK_S = 2  # for an answer of a server that may not be there; psycopg takes less than 2 s for 2 s


class Timelines:
    """Opens sessions of one replica. Any thread."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._lock = threading.Lock()
        self._highest = 0
        self._sessions = WeakSet[Connection]()

    def open(self, *, name: str, limits: SessionLimits, thorough: bool = False) -> Connection:
        """As connect_session, on the highest timeline seen so far or a higher one.

        `thorough` looks at all servers of the DSN, not only for the first that takes writes. Raises DatabaseUnavailable
        where there are only servers on lower timelines.
        """
        patient = replace(limits, idle_s=0.0)  # it must not be ended while we look around
        conn = connect_session(self._dsn, name=name, limits=patient)
        timeline = timeline_of(conn)
        if thorough or timeline < self._highest:
            for rival, other in _primaries(list(servers_after(self._dsn, conn)), name, patient):
                if other > timeline:
                    conn.close()
                    conn, timeline = rival, other
                else:
                    rival.close()
        with set_up(conn):
            self._admit(conn, timeline)
            if limits != patient:
                pin(conn, limits)
        return conn

    def _admit(self, conn: Connection, timeline: int) -> None:
        with self._lock:
            if timeline < self._highest:
                raise DatabaseUnavailable(
                    f"the server {conn.info.host}:{conn.info.port} takes writes on timeline {timeline}, but this "
                    f"replica has seen timeline {self._highest}: it is a former primary, make it a standby or stop it"
                )
            left: list[Connection] = []
            if timeline > self._highest:
                left, self._sessions = list(self._sessions), WeakSet()
                self._highest = timeline
            self._sessions.add(conn)
        if left:
            log.warning("goes over to a promoted server", extra={"timeline": timeline})
        for session in left:
            cut(session)


def _primaries(dsns: Sequence[str], name: str, limits: SessionLimits) -> list[tuple[Connection, int]]:
    """A session, and the timeline, on each of these servers that takes writes. They are asked all at once."""

    def ask(dsn: str) -> tuple[Connection, int] | None:
        try:
            conn = connect_session(dsn, name=name, limits=limits)
            return conn, timeline_of(conn)
        except DispatcherError:  # away, or no primary
            return None

    if not dsns:
        return []
    with ThreadPoolExecutor(len(dsns), thread_name_prefix="look around") as askers:
        return [found for found in askers.map(ask, dsns) if found is not None]


def timeline_of(conn: Connection) -> int:
    """The server's timeline; closes the session and raises DatabaseUnavailable where it has become a standby."""
    try:
        row = conn.execute(statement("get_timeline"), prepare=False).fetchone()
    except psycopg.Error as exc:
        conn.close()
        raise DatabaseUnavailable(f"the server does not tell its timeline: {first_line(exc)}") from exc
    assert row is not None
    return int(row[0])


def servers_after(dsn: str, conn: Connection) -> Iterator[str]:
    """A DSN for each server behind the one that `conn` has reached: those before it are away, or no primary."""
    params = check_dsn(dsn)
    hosts, ports, addresses = (str(params.get(name) or "").split(",") for name in ("host", "port", "hostaddr"))
    count = max(len(hosts), len(addresses))
    if len(ports) == 1:
        ports *= count
    here = conn.info.get_parameters()
    names = hosts if len(hosts) == count else addresses
    reached = (here.get("host" if names is hosts else "hostaddr", ""), here.get("port", "5432"))
    servers = [(name, port or "5432") for name, port in zip(names, ports, strict=False)]
    for index in range(servers.index(reached) + 1 if reached in servers else count, count):
        where = {"port": ports[index], "host": hosts[index] if len(hosts) == count else ""}
        if len(addresses) == count:
            where["hostaddr"] = addresses[index]
        yield conninfo.make_conninfo(dsn, **where, connect_timeout=LOOK_S)
