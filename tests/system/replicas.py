"""Real replicas for tests of faults: processes of `dispatcher run` with short timings, and what they leave behind."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import psycopg

from tests.events import Event, read_events
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
PATIENCE_S = 50.0  # for what should take milliseconds: the machine may be busy
LOOK_S = 0.005  # neither a row nor a process of somebody else's can be waited for
TIMINGS = {
    "heartbeat_interval": "100ms",
    "lease_duration": "600ms",
    "orphan_after": "2500ms",
    "poll_interval": "200ms",
    "shutdown_grace": "2s",
    "threads": "4",
}
CALM = {"lease_duration": "15s", "orphan_after": "60s"}
"""For tests in which nobody falls silent: a busy machine must not make a leader do so."""
ONLY_NOTIFICATIONS = {
    "poll_interval": "120s",
    "heartbeat_interval": "60s",
    "lease_duration": "150s",
    "orphan_after": "300s",
}
"""For tests in which nothing is to be found by looking again: that would come a minute later."""
SOON_S = 15.0  # well before that, on a machine that is busy
T = TypeVar("T")


def within(timeout_s: float, look: Callable[[], T], *, every_s: float = LOOK_S) -> T:
    """Looks again and again until there is something to see, or the time is over; what was seen last."""
    deadline = time.monotonic() + timeout_s
    while not (seen := look()) and time.monotonic() < deadline:
        time.sleep(every_s)
    return seen


def until(look: Callable[[], T], what: str, timeout_s: float = PATIENCE_S) -> T:
    """Looks again and again until there is something to see, and returns it."""
    seen = within(timeout_s, look)
    assert seen, f"waited in vain until {what}"
    return seen


class Replica:
    """A process of `dispatcher run`: of this version, or of the one whose unpacked wheel is `code`."""

    def __init__(
        self,
        dsn: str,
        folder: Path,
        number: int,
        settings: dict[str, str],
        *,
        environment: Mapping[str, str] | None = None,
        module: str = "dispatcher",
        code: str | None = None,
    ) -> None:
        self.metrics_port = free_port()
        self.log_file = folder / f"replica-{number}.log"
        more = dict(environment or {})
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "DISPATCHER_"))}
        settings = {"executors": "tests.system.fault_jobs"} | TIMINGS | settings
        environment |= {f"DISPATCHER_{name.upper()}": value for name, value in settings.items()}
        environment |= more | {
            "DISPATCHER_DSN": dsn,
            "DISPATCHER_METRICS_PORT": str(self.metrics_port),
            "DISPATCHER_LOG_FORMAT": "json",
            "RUNTIME_DIRECTORY": str(folder / "run"),
            "TEST_EVENTS": more.get("TEST_EVENTS", str(folder / "events")),
        }
        if code is not None:
            environment["PYTHONPATH"] = f"{code}:{ROOT}"
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, "run"],
                cwd=code or ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.pid = self.process.pid
        self.id = 0

    def send(self, number: signal.Signals) -> None:
        """A signal."""
        self.process.send_signal(number)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Its exit status, once it is gone."""
        return self.process.wait(timeout_s)

    @property
    def alive(self) -> bool:
        """Whether the process is there, be it stopped."""
        return self.process.poll() is None

    def log(self) -> list[dict[str, Any]]:
        """What it has logged so far; a line that is just being written is none yet."""
        entries = []
        written, _, _ = self.log_file.read_bytes().rpartition(b"\n")
        for line in written.decode().splitlines():
            try:
                entries.append(json.loads(line))
            except ValueError:
                entries.append({"event": line, "level": "raw"})
        return entries

    def said(self, event: str) -> bool:
        """Whether it has logged this."""
        return any(event in entry["event"] for entry in self.log())

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels, scraped now."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=PATIENCE_S) as answer:
            text = answer.read().decode()
        values = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith((name + " ", name + "{"))]
        return sum(map(float, values))

    def close(self) -> None:
        """Ends it at once."""
        if self.alive:
            self.process.kill()
        self.process.wait(10)


class Fleet:
    """Replicas on one database, the jobs they run, and what is known of both. Close it with all its processes."""

    def __init__(self, dsn: str, folder: Path, *, admin_dsn: str | None = None) -> None:
        self.dsn = dsn
        self.folder = folder
        self.replicas: list[Replica] = []
        self._admin_dsn = admin_dsn or dsn
        self._conn: psycopg.Connection | None = None
        self._events: list[Event] = []
        (folder / "events").touch()
        (folder / "run").mkdir(exist_ok=True)

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(self, *_: object) -> None:
        for replica in self.replicas:
            replica.close()
            print(f"--- replica {replica.id}, process {replica.pid}")  # pytest shows it beside a failure
            print(replica.log_file.read_text()[-6000:])
        if self._conn is not None:
            self._conn.close()

    @property
    def conn(self) -> psycopg.Connection:
        """The test's own connection."""
        if self._conn is None:
            self._conn = psycopg.connect(self._admin_dsn, autocommit=True)
        return self._conn

    def reconnect(self, dsn: str | None = None) -> None:
        """A new connection for the test, to another server if one is named: the server has ended the last one."""
        self._admin_dsn = dsn or self._admin_dsn
        if self._conn is not None:
            self._conn.close()
            self._conn = None

    def query(self, query: str, *params: object) -> list[tuple[Any, ...]]:
        """Rows of a query by the test."""
        return self.conn.execute(query.encode(), params or None).fetchall()

    def value(self, query: str, *params: object) -> Any:
        """The one value of a query."""
        [(value,)] = self.query(query, *params)
        return value

    def start(self, *, dsn: str | None = None, code: str | None = None, **settings: str) -> Replica:
        """A replica, once its lease session stands and it listens: it leads or stands by."""
        replica = self.launch(dsn=dsn, code=code, **settings)
        self.until_up(replica)
        return replica

    def launch(self, *, dsn: str | None = None, code: str | None = None, **settings: str) -> Replica:
        """A replica that may or may not come up."""
        replica = Replica(dsn or self.dsn, self.folder, len(self.replicas), settings, code=code)
        self.replicas.append(replica)
        return replica

    def start_leader(self, *, dsn: str | None = None, code: str | None = None, **settings: str) -> Replica:
        """The first replica, once it leads."""
        replica = self.start(dsn=dsn, code=code, **settings)
        self.until_leads(replica)
        return replica

    def start_pair(self, **settings: str) -> tuple[Replica, Replica]:
        """Two replicas: the one that leads, and the one that stands by."""
        one, other = self.launch(**settings), self.launch(**settings)
        self.until_up(one)
        self.until_up(other)
        leader_pid = until(self.leader_pid, "one of them leads")
        return (one, other) if leader_pid == one.pid else (other, one)

    def until_leads(self, replica: Replica, timeout_s: float = PATIENCE_S) -> None:
        """Waits until this replica's session holds the lease."""
        until(lambda: self.leader_pid() == replica.pid, f"replica {replica.id} leads", timeout_s)

    def leader_pid(self) -> int | None:
        """The process of the replica whose term has begun and whose lease session holds the lock right now."""
        rows = self.query(
            """
            select r.pid
            from pg_locks l
            join dispatcher.replica r on r.backend_pid = l.pid
            join dispatcher.lease t on t.number = l.objid::integer and t.holder = r.id
            where l.locktype = 'advisory' and l.classid = dispatcher.lease_lock()::oid and l.granted
              and l.database = (select d.oid from pg_database d where d.datname = current_database())"""
        )
        return rows[0][0] if rows else None

    def term(self) -> int:
        """The latest term."""
        return int(self.value("select term from dispatcher.lease where name = 'default'"))

    def enqueue(self, type: str, count: int = 1, **payload: object) -> list[int]:
        """Enqueues jobs of a type; their ids."""
        rows = self.query(
            "select dispatcher.enqueue(%s, %s::jsonb) from generate_series(1, %s)", type, json.dumps(payload), count
        )
        return [id for (id,) in rows]

    def gate(self, name: str = "gate") -> Path:
        """A file that jobs wait for; not there yet."""
        return self.folder / name

    def states(self, ids: Iterable[int]) -> dict[int, str]:
        """The states of jobs."""
        return dict(self.query("select id, state from dispatcher.job where id = any(%s)", list(ids)))

    def job(self, id: int) -> dict[str, Any]:
        """A job's row in the view."""
        cursor = self.conn.execute("select * from dispatcher.jobs where id = %s", [id])
        row = cursor.fetchone()
        assert row is not None
        assert cursor.description is not None
        return dict(zip([column.name for column in cursor.description], row, strict=True))

    def until_all(self, ids: list[int], state: str = "succeeded", timeout_s: float = PATIENCE_S) -> None:
        """Waits until all these jobs are in a state."""
        until(lambda: set(self.states(ids).values()) == {state}, f"all jobs are {state}", timeout_s)

    def events(self, what: str | None = None, *, job: int | None = None, pid: int | None = None) -> list[Event]:
        """What the executors wrote, in the order of writing."""
        self._events += read_events(self.folder / "events", skip=len(self._events))  # who polls reads each once
        return [
            event
            for event in self._events
            if what in (None, event.what) and job in (None, event.job) and pid in (None, event.pid)
        ]

    def until_started(self, ids: list[int], *, pid: int | None = None, timeout_s: float = PATIENCE_S) -> None:
        """Waits until all these jobs have begun, in that process if one is named."""
        wanted = set(ids)
        until(
            lambda: wanted <= {event.job for event in self.events("start", pid=pid)}, "the jobs have started", timeout_s
        )

    def until_up(self, replica: Replica) -> None:
        """Waits until its lease session stands and it listens."""
        replica.id = until(lambda: self._connected(replica), "the replica has connected")
        until(lambda: replica.metric("dispatcher_listener_connected"), "the replica listens")

    def _connected(self, replica: Replica) -> int:
        assert replica.alive, "the replica did not start: " + replica.log_file.read_text()[-3000:]
        rows = self.query("select id from dispatcher.replica where pid = %s and incarnation > 0", replica.pid)
        return int(rows[0][0]) if rows else 0


def overlaps(events: list[Event], deaths: dict[int, float] | None = None) -> list[tuple[Event, Event]]:
    """Attempts of one job that ran at the same time. One without an end lasted until the death of its process."""
    attempts: dict[int, list[tuple[float, float, Event]]] = defaultdict(list)
    for start in (event for event in events if event.what == "start"):
        ends = [
            event.t
            for event in events
            if event.what == "end" and (event.job, event.attempt, event.pid) == (start.job, start.attempt, start.pid)
        ]
        end = min([*ends, (deaths or {}).get(start.pid, float("inf"))])
        attempts[start.job].append((start.t, end, start))
    found = []
    for spans in attempts.values():
        ordered = sorted(spans, key=lambda span: span[0])
        for (_, end, first), (begin, _, second) in itertools.pairwise(ordered):
            if begin < end:
                found.append((first, second))
    return found


OURS = "application_name like %s and datname = current_database() and pid <> pg_backend_pid()"


def count_sessions(conn: psycopg.Connection, name: str) -> int:
    """How many sessions of daemons have an application name like `name`."""
    return len(conn.execute(f"select pid from pg_stat_activity where {OURS}", [name]).fetchall())


def end_sessions(conn: psycopg.Connection, name: str) -> int:
    """Ends the daemons' sessions whose application name is like `name`; how many there were."""
    return len(conn.execute(f"select pg_terminate_backend(pid) from pg_stat_activity where {OURS}", [name]).fetchall())
