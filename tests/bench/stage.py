"""Where a scenario plays: a fresh database for each round, replicas as real processes, and what they noted."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psycopg
from psycopg import conninfo, sql

from dispatcher import Client, Registry, migrate
from dispatcher.db import connect
from dispatcher.executor import Executor
from dispatcher.queries.replicas import publish_types
from tests.bench import jobs

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0
POLL_S = 0.002
T = TypeVar("T")


class BenchFailed(Exception):
    """A measurement cannot be trusted; the message says why."""


class Stage:
    """One migrated database of its own, in which the bench's types are known; gone at the end."""

    def __init__(self, dsn: str, folder: Path) -> None:
        self.dsn = dsn
        self.client = Client(dsn)
        self._runs = folder / "runs"
        self._log = folder / "replicas.log"
        self._replicas: list[subprocess.Popen[bytes]] = []

    def environment(self) -> dict[str, str]:
        """That of a program of ours: this database, the bench's executors, no setting of whoever runs the bench."""
        kept = {n: v for n, v in os.environ.items() if not n.startswith(("DISPATCHER_", "PG")) and n != "DATABASE_URL"}
        return kept | {
            "DISPATCHER_DSN": self.dsn,
            "DISPATCHER_METRICS_PORT": "0",
            "DISPATCHER_EXECUTORS": jobs.__name__,
            "RUNTIME_DIRECTORY": str(self._log.parent),
            jobs.RUNS: str(self._runs),
        }

    def start_replica(self, **env: str) -> subprocess.Popen[bytes]:
        """A replica with all settings at their defaults, but for its port."""
        with self._log.open("ab") as output:
            replica = subprocess.Popen(
                [sys.executable, "-m", "dispatcher", "run"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=ROOT,
                env={**self.environment(), **env},
                start_new_session=True,
            )
        self._replicas.append(replica)
        return replica

    def lead(self) -> int:
        """Waits until all replicas that were started are up and one of them leads; its process id."""
        pids = {replica.pid for replica in self._replicas if replica.poll() is None}
        # By process id: a replica that was killed shows as alive while the rescuer holds its lock.
        self.until("replicas", lambda: pids <= {one.pid for one in self.client.replicas() if one.alive})
        leader = self.until("a leader", self.client.leader)
        assert leader.pid is not None
        return leader.pid

    def stop_replica(self, replica: subprocess.Popen[bytes]) -> None:
        """SIGTERM, and its end."""
        replica.send_signal(signal.SIGTERM)
        if replica.wait(30) != 0:
            raise BenchFailed(f"a replica ended with {replica.returncode}: {self._last_words()}")

    def find(self, pid: int) -> subprocess.Popen[bytes]:
        """The replica with this process id."""
        return next(replica for replica in self._replicas if replica.pid == pid)

    def notes(self) -> list[list[str]]:
        """What the executors noted, each line as words."""
        return [line.split() for line in self._lines()]

    def noted(self, word: str) -> list[str]:
        """What followed this word in each line that began with it."""
        return [rest for first, _, rest in (line.partition(" ") for line in self._lines()) if first == word]

    def ask(self, query: str, *params: object) -> object:
        """The one value that a query of the bench answers."""
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            row = conn.execute(query.encode(), params or None).fetchone()
        assert row is not None
        return row[0]

    def do(self, query: str, **params: object) -> None:
        """Something that the bench does to the database beforehand."""
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            conn.execute(query.encode(), params or None)

    def wal_bytes(self) -> int:
        """How much the server has written to its log so far."""
        return int(str(self.ask("select pg_current_wal_insert_lsn() - '0/0'")))

    def until(self, what: str, look: Callable[[], T | None], patience_s: float = PATIENCE_S) -> T:
        """What `look` answers once it is true."""
        deadline = time.monotonic() + patience_s
        while not (answer := look()):
            if any(replica.poll() not in (None, 0, -signal.SIGKILL) for replica in self._replicas):
                raise BenchFailed(f"a replica ended while the bench waited for {what}: {self._last_words()}")
            if time.monotonic() > deadline:
                raise BenchFailed(f"no sign of {what} within {patience_s:.0f} s: {self._last_words()}")
            time.sleep(POLL_S)
        return answer

    def close(self) -> None:
        """Ends what is left."""
        self.client.close()
        for replica in self._replicas:
            if replica.poll() is None:
                replica.kill()
            replica.wait()

    def _lines(self) -> list[str]:
        if not self._runs.exists():
            return []
        return [line[:-1] for line in self._runs.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[-5:] if self._log.exists() else []
        return " / ".join(lines) or "it said nothing"


@contextmanager
def stage(server_dsn: str, env: Mapping[str, str] | None = None) -> Iterator[Stage]:
    """A stage in a new database of the server; the role must be allowed to create one. `env` is as its replicas' is."""
    name = f"dispatcher_bench_{secrets.token_hex(4)}"
    dsn = conninfo.make_conninfo(server_dsn, dbname=name)
    _administer(server_dsn, sql.SQL("create database {}").format(sql.Identifier(name)))
    try:
        migrate.migrate(dsn)
        with connect(dsn) as conn:  # as a replica does at its start
            publish_types(conn, _registry(env or {}), limits={}, timeout_s=900.0, max_payload_bytes=1 << 20)
        with tempfile.TemporaryDirectory(prefix="dispatcher-bench-") as folder:
            made = Stage(dsn, Path(folder))
            try:
                yield made
            finally:
                made.close()
    finally:
        _administer(server_dsn, sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


def _registry(env: Mapping[str, str]) -> Registry:
    registry = Registry.load([jobs.__name__])
    for number in range(int(env.get(jobs.TYPES, "0"))):
        registry.add(Executor(f"{jobs.MANY}{number}", jobs.one_of_many(), jobs.__name__))
    return registry


def _administer(dsn: str, statement: sql.Composed) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(statement)
