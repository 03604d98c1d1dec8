"""How each fault is made, and how it ends. A fault names its kind; the method of that name makes it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from psycopg import conninfo

from dispatcher.embedded import EmbeddedPostgres
from tests.storm.places import Place, Places
from tests.storm.plan import LEADER, SESSIONS, Fault

HOUR_S = 3600
LOCKED_ROWS = 50
SLOW_S = 0.05
Undo = Callable[[], None]

LEADER_PID = """
select r.pid from dispatcher.lease t join dispatcher.replica r on r.id = t.holder
join pg_locks l on l.pid = r.backend_pid and l.locktype = 'advisory' and l.granted
     and l.classid = dispatcher.lease_lock()::oid and l.objid = t.number::oid limit 1"""
BACKENDS = """
select pid from pg_stat_activity
where application_name like 'dispatcher %%' and application_name like %s order by pid"""
END_SESSIONS = """
select count(pg_terminate_backend(pid)) from pg_stat_activity
where application_name like 'dispatcher %%' and application_name like %s"""


class Faults:
    """Makes faults and takes them back. `dsn` is the tests' role, by the unix socket: no network lies between."""

    def __init__(self, *, server: EmbeddedPostgres, dsn: str, places: Places, folder: Path) -> None:
        self._server = server
        self._dsn = dsn
        self._places = places
        self._folder = folder
        self._running: dict[int, Undo] = {}

    def begin(self, fault: Fault) -> None:
        """Makes it; one that lasts is kept in mind until `end`."""
        undo = getattr(self, f"_{fault.kind}")(fault, self._place(fault))
        if undo is not None:
            self._running[fault.number] = undo

    def end(self, fault: Fault) -> None:
        """Takes it back, if it lasted."""
        if undo := self._running.pop(fault.number, None):
            undo()

    def end_all(self) -> None:
        """Takes back whatever still lasts."""
        for undo in self._running.values():
            undo()
        self._running.clear()

    def _place(self, fault: Fault) -> Place:
        if fault.place == LEADER and (leading := self._places.at(self._leader_pid())):
            return leading
        return self._places.all[max(fault.place or 0, 0)]

    def _leader_pid(self) -> int | None:
        rows = self._ask(LEADER_PID)
        return int(rows[0][0]) if rows else None

    def _ask(self, query: str, *params: object) -> list[tuple[Any, ...]]:
        """As the superuser, for whom some connections are kept; nothing where the server is away."""
        with contextlib.suppress(psycopg.OperationalError):
            dsn = conninfo.make_conninfo(self._dsn, user="postgres", connect_timeout=2)
            with psycopg.connect(dsn, autocommit=True) as conn:
                return conn.execute(query.encode(), params or None).fetchall()
        return []

    def logs(self) -> list[Path]:
        """What commands wrote that were run beside the replicas."""
        return list(self._folder.glob("*.log"))

    # Processes

    def _kill(self, _fault: Fault, place: Place) -> None:
        place.send(signal.SIGKILL)

    def _stop(self, _fault: Fault, place: Place) -> Undo:
        stopped = place.replica
        place.send(signal.SIGSTOP)

        def go_on() -> None:
            with contextlib.suppress(ProcessLookupError):
                stopped.send(signal.SIGCONT)

        return go_on

    _stop_below_the_lease = _stop_past_the_lease = _stop_past_orphan_after = _stop

    def _terminate(self, _fault: Fault, place: Place) -> None:
        place.send(signal.SIGTERM)

    def _rolling_restart(self, _fault: Fault, _place: Place) -> None:
        for number, place in enumerate(self._places.all):
            threading.Timer(2.0 * number, place.send, [signal.SIGTERM]).start()

    def _resign(self, _fault: Fault, _place: Place) -> None:
        self._ask("select pg_notify('dispatcher_replica_' || holder, 'resign ' || term) from dispatcher.lease")

    # PostgreSQL

    def _end_sessions(self, fault: Fault, _place: Place) -> None:
        kind = SESSIONS[fault.detail % len(SESSIONS)]
        self._ask(END_SESSIONS, f"%{kind}%")

    def _backend_stopped(self, fault: Fault, _place: Place) -> Undo | None:
        """The server's process for one session stands still: neither its time-outs nor pg_terminate_backend help."""
        kind = SESSIONS[fault.detail % len(SESSIONS)]
        backends = [int(pid) for (pid,) in self._ask(BACKENDS, f"%{kind}%")]
        if not backends:
            return None
        pid = backends[fault.detail % len(backends)]
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)

        def go_on() -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

        return go_on

    def _postgres_kill(self, _fault: Fault, _place: Place) -> Undo:
        self._server.kill()
        return self._server.start

    _postgres_kill_past_orphan_after = _postgres_kill

    def _postgres_restart(self, _fault: Fault, _place: Place) -> Undo:
        self._server.stop()
        return self._server.start

    def _connections_exhausted(self, fault: Fault, place: Place) -> Undo:
        """All that there are, and some sessions of the replicas ended, so that they look for new ones."""
        crowd: list[psycopg.Connection] = []

        def fill() -> None:
            with contextlib.suppress(psycopg.OperationalError):
                while True:
                    crowd.append(psycopg.connect(self._dsn))

        fill()
        self._end_sessions(fault, place)
        fill()

        def leave() -> None:
            for conn in crowd:
                conn.close()

        return leave

    def _rows_locked(self, _fault: Fault, _place: Place) -> Undo | None:
        """A user's transaction that stays open with locks on jobs."""
        try:
            conn = psycopg.connect(self._dsn, connect_timeout=2)
            conn.execute(
                "select id from dispatcher.job where id > (select max(id) - 500 from dispatcher.job)"
                " order by random() limit %s for update skip locked",
                [LOCKED_ROWS],
            )
        except psycopg.OperationalError:
            return None
        return conn.close

    def _migrate(self, _fault: Fault, _place: Place) -> None:
        command = [sys.executable, "-m", "dispatcher", "migrate"]
        with (self._folder / "migrate.log").open("ab") as output:
            subprocess.Popen(
                command,
                env=os.environ | {"DISPATCHER_DSN": self._dsn},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    # The network

    def _network_cut(self, _fault: Fault, place: Place) -> Undo:
        place.proxy.cut()
        return place.proxy.restore

    def _network_silent(self, _fault: Fault, place: Place) -> Undo:
        place.proxy.pause()
        return place.proxy.restore

    def _network_deaf(self, _fault: Fault, place: Place) -> Undo:
        """It sends, and hears nothing."""
        place.proxy.pause(to_server=False)
        return place.proxy.restore

    def _network_mute(self, _fault: Fault, place: Place) -> Undo:
        """It hears, and nothing that it sends arrives."""
        place.proxy.pause(to_client=False)
        return place.proxy.restore

    def _network_half_open(self, _fault: Fault, place: Place) -> None:
        place.proxy.strand()

    def _network_slow(self, _fault: Fault, place: Place) -> Undo:
        place.proxy.slow(SLOW_S)
        return place.proxy.restore

    # The clock of the day

    def _clock_stepped(self, fault: Fault, place: Place) -> Undo:
        place.clock.step(HOUR_S if fault.detail % 2 else -HOUR_S)
        return lambda: place.clock.step(0)
