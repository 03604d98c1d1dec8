"""One peer at a time, in a database of its own: drain, enqueue, pickup."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg import conninfo, sql

from tests.bench.peers.catalog import FOLDER, OURS, PEERS, ROOT
from tests.bench.scenarios.measures import Measures, percentiles
from tests.bench.stage import BenchFailed

PATIENCE_S = 240.0
SINGLES = 2000
PICKUPS, GAP_MS = 200, 20
FLOOR_ROWS, FLOOR_BATCH = 100_000, 500


class Contest:
    """A peer, its schema installed anew, on a server whose role may create databases; all of it gone at the end."""

    def __init__(self, name: str, server_dsn: str, folder: Path) -> None:
        self._name, self._spec, self._server = name, PEERS[name], server_dsn
        self._database = f"bench_peer_{name.replace('-', '_')}"
        self._dsn = _url(server_dsn, self._database)
        self._log, self._errors = folder / "log", folder / "errors"
        self._worker: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        _administer(self._server, "drop database if exists {} with (force)", self._database)
        _administer(self._server, "create database {}", self._database)
        self._log.write_text("")
        self._run("install")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        _administer(self._server, "drop database if exists {} with (force)", self._database)

    def drain(self, count: int) -> Measures:
        """Enqueues many, then works them off: from the first start until no job is unfinished. WAL of both."""
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            conn.execute("checkpoint")
            wal = _wal(conn)
            bulk_s = self._run("bulk", count)["s"]
            wal = _wal(conn) - wal
            conn.execute("analyze")
            if (waiting := self._left(conn)) != count:
                raise BenchFailed(f"{self._name}: {waiting} jobs wait instead of {count}")
            wal -= _wal(conn)
            self._start(PEER_MODE="count", PEER_N=str(count))
            self._until("the last job", lambda: self._noted("last"))
            self._until("the end of all jobs", lambda: self._left(conn) == 0)
            ended = time.monotonic()
            wal += _wal(conn)
            self._check(conn, count)
        return {
            "drain": (count / (ended - float(self._noted("first"))), "1/s"),
            "enqueue_bulk": (count / bulk_s, "1/s"),
            "wal_per_job": (wal / count, "B"),
        }

    def single(self) -> Measures:
        """One job after another over one connection; nobody works."""
        return {"enqueue_single": (SINGLES / self._run("single", SINGLES)["s"], "1/s")}

    def pickup(self) -> Measures:
        """An idle worker: from the call that enqueues to the job's first line."""
        self._start(PEER_MODE="log", PEER_CONC=str(self._spec.idle_concurrency or self._spec.concurrency))
        asked = self._run("pickup", PICKUPS, GAP_MS)["starts"]
        self._until("all jobs", lambda: len(self._lines()) > PICKUPS)
        started = {int(n): float(at) for n, at in (line.split() for line in self._lines())}
        return percentiles([(started[n] - at) * 1000 for n, at in enumerate(asked)], "ms", (50, 95, 99), "pickup_")

    def _check(self, conn: psycopg.Connection[Any], count: int) -> None:
        if self._name == OURS:
            row = conn.execute(
                "select count(*) from dispatcher.job where state = 'succeeded' and attempt = 1"
            ).fetchone()
            if row != (count,):
                raise BenchFailed(f"{row} of {count} jobs are recorded as succeeded in their first attempt")

    def _left(self, conn: psycopg.Connection[Any]) -> int:
        row = conn.execute(self._spec.left.encode()).fetchone()
        assert row is not None
        return int(row[0])

    def _run(self, command: str, *numbers: int) -> dict[str, Any]:
        with self._errors.open("ab") as errors:
            done = subprocess.run(
                [*self._spec.command, command, *map(str, numbers)],
                cwd=ROOT,
                env=self._environment(),
                stdout=subprocess.PIPE,
                stderr=errors,
                check=False,
                timeout=PATIENCE_S,
            )
        if done.returncode:
            raise BenchFailed(f"{self._name} {command} failed: {self._last_words()}")
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer

    def _start(self, **env: str) -> None:
        self._log.write_text("")
        with self._errors.open("ab") as errors:
            self._worker = subprocess.Popen(
                [*self._spec.command, "work"],
                cwd=ROOT,
                env=self._environment() | env,
                stdout=errors,
                stderr=errors,
                start_new_session=True,
            )

    def _stop(self) -> None:
        if self._worker is None or self._worker.poll() is not None:
            return
        self._worker.terminate()
        try:
            self._worker.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self._worker.pid, signal.SIGKILL)
            self._worker.wait()

    def _environment(self) -> dict[str, str]:
        own = {"PEER_DSN": self._dsn, "PEER_LOG": str(self._log), "PEER_CONC": str(self._spec.concurrency)}
        return {**os.environ, **self._spec.env, **own}

    def _lines(self) -> list[str]:
        return [line[:-1] for line in self._log.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def _noted(self, word: str) -> str:
        return next((line.split()[1] for line in self._lines() if line.startswith(f"{word} ")), "")

    def _until(self, what: str, look: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not look():
            if self._worker is not None and self._worker.poll() is not None:
                raise BenchFailed(f"{self._name}: the worker ended: {self._last_words()}")
            if time.monotonic() > deadline:
                raise BenchFailed(f"{self._name}: no sign of {what} within {PATIENCE_S:.0f} s: {self._last_words()}")
            time.sleep(0.002)

    def _last_words(self) -> str:
        lines = self._errors.read_text(errors="replace").splitlines()[-3:] if self._errors.exists() else []
        return " / ".join(lines) or "it said nothing"


def floor(server_dsn: str) -> float:
    """Jobs a second that PostgreSQL does alone: both updates of a job by a loop inside the server, in batches."""
    _administer(server_dsn, "drop database if exists {} with (force)", "bench_peer_floor")
    _administer(server_dsn, "create database {}", "bench_peer_floor")
    try:
        with psycopg.connect(_url(server_dsn, "bench_peer_floor"), autocommit=True) as conn:
            conn.execute((FOLDER / "floor.sql").read_bytes())
            fill = (
                "insert into job (type, payload) select 'job', jsonb_build_object('n', n) from generate_series(1, %s) n"
            )
            conn.execute(fill, [FLOOR_ROWS])
            conn.execute("vacuum analyze job")
            conn.execute("checkpoint")
            began = time.monotonic()
            conn.execute("call drain(%s, 'u')", [FLOOR_BATCH])
            return FLOOR_ROWS / (time.monotonic() - began)
    finally:
        _administer(server_dsn, "drop database {} with (force)", "bench_peer_floor")


def _url(dsn: str, database: str) -> str:
    """A URL, which all drivers read."""
    params = conninfo.conninfo_to_dict(dsn)
    secret = f":{params['password']}" if params.get("password") else ""
    return (
        f"postgresql://{params['user']}{secret}@{params.get('host', '127.0.0.1')}:{params.get('port', 5432)}/{database}"
    )


def _wal(conn: psycopg.Connection[Any]) -> int:
    row = conn.execute("select pg_current_wal_insert_lsn() - '0/0'").fetchone()
    assert row is not None
    return int(row[0])


def _administer(dsn: str, statement: str, name: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(sql.SQL(statement).format(sql.Identifier(name)))
