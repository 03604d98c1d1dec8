"""Queue: a real queue on a real PostgreSQL, whose jobs run in line when a test says so."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from dispatcher import migrate
from dispatcher.client import Client
from dispatcher.db import Connection, SessionLimits, connect_session
from dispatcher.executor import Executor, Registry
from dispatcher.inflight import Execution, InFlight
from dispatcher.job import JobInfo
from dispatcher.metrics import Metrics
from dispatcher.options import Options
from dispatcher.pools.attempt import Attempts
from dispatcher.pools.thread import ThreadPool
from dispatcher.queries import claims, replicas, upkeep
from dispatcher.queries.claims import Take
from dispatcher.runtime import JobRuntime
from dispatcher.services.completer import Completer
from dispatcher.services.linker import Linker
from dispatcher.sql import statement
from dispatcher.store import open_store
from dispatcher.tally import Tally
from dispatcher.testing.inline import declared

OWNER = 0  # no replica has this number
PROMOTED = 1000  # at a time


class Queue:
    """Claims, runs and settles with a replica's own statements, one job after the other, in the caller's thread.

    `executors` are decorated functions or classes, modules with such, or a Registry. The database must be the test's
    own, with no replica on it; its schema is brought up to date. Time-outs and limits are not enforced. `client` is a
    Client of it. Use it in a `with` block, or close it.
    """

    def __init__(
        self,
        dsn: str,
        executors: Registry | Iterable[Any],
        *,
        result_store: str = "",
        max_result_bytes: int = 1024 * 1024,
        job_timeout_s: float = 900.0,
    ) -> None:
        migrate.migrate(dsn)
        self.registry = registry_of(executors)
        self.client = Client(dsn, registry=self.registry)
        self._dsn = dsn
        self._inflight = InFlight()
        self._conn = self._session()
        row = self._conn.execute(statement("get_installation")).fetchone()
        assert row is not None
        runtime = JobRuntime(
            dsn=dsn,
            installation=row[0],
            owner=OWNER,
            registry=self.registry,
            store=open_store(result_store, row[0]) if result_store else None,
            max_result_bytes=max_result_bytes,
        )
        self._runtime = runtime
        self._completer = Completer(
            open_session=self._session,
            owner=OWNER,
            inflight=self._inflight,
            metrics=Metrics(),
            tally=Tally(),
            settled=lambda *_: None,
            stop=threading.Event(),
        )
        self._linker = Linker(
            open_session=self._session,
            leading=lambda: True,
            released=lambda: None,
            metrics=Metrics(),
            stop=threading.Event(),
        )
        runtime.progress = self._completer.report_progress
        self._pool = ThreadPool(
            threads=1,
            inflight=self._inflight,
            attempts=Attempts(runtime=runtime, job_timeout_s=job_timeout_s, chance=lambda: 0.5),
            ended=self._completer.put,
        )
        replicas.publish_types(
            self._conn, self.registry, limits={}, timeout_s=job_timeout_s, max_payload_bytes=1024 * 1024
        )

    def __enter__(self) -> Queue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes all sessions."""
        self._completer.close()
        self._linker.close()
        self._runtime.close()
        self.client.close()
        self._conn.close()

    def enqueue(self, type: str, payload: Any = None, **options: Any) -> int:
        """As Client.enqueue."""
        given: Options = {**options}  # type: ignore[typeddict-item] # the client checks them
        return self.client.enqueue(type, payload, **given)

    def drain(self, *, scheduled: bool = False, limit: int = 1000) -> list[JobInfo]:
        """Runs what is pending, and what that enqueues, until nothing is left; the jobs that ended, in that order.

        `scheduled`: also what is due later, such as the next try of a job that failed, without waiting for its time.
        Raises RuntimeError after `limit` runs: a job that snoozes or enqueues itself would go on for ever.
        """
        ended: list[int] = []
        for _ in range(limit):
            execution = self._claim()
            if execution is None and scheduled and upkeep.hasten_jobs(self._conn):
                execution = self._claim()
            if execution is None:
                return [self.client.get(id) for id in ended]
            self._pool.run(execution)
            while execution.key in self._inflight:
                self._completer.step()
            if self.client.get(execution.claimed.id).state.final:
                ended.append(execution.claimed.id)
        raise RuntimeError(f"the queue is not empty after {limit} runs: does a job enqueue or snooze itself for ever?")

    def _claim(self) -> Execution | None:
        """The job that a leader with one thread would take next."""
        while self._linker.turn() == 0.0:
            pass
        upkeep.promote_jobs(self._conn, PROMOTED)
        lanes = sorted(claims.list_lanes(self._conn), key=lambda found: found.head)
        for found in lanes:
            spec = self.registry.get(found.lane.type)
            if spec is None:
                continue
            for claimed in claims.claim_jobs(self._conn, [Take(found.lane, 1)], owner=OWNER, term=0):
                execution = Execution(claimed, spec, 0.0)
                self._inflight.add([execution])
                return execution
        return None

    def _session(self) -> Connection:
        return connect_session(self._dsn, name="dispatcher testing", limits=SessionLimits())


def registry_of(executors: Registry | Iterable[Any]) -> Registry:
    """The executors of a registry, of modules, and decorated ones."""
    if isinstance(executors, Registry):
        return executors
    registry = Registry()
    for one in executors:
        if isinstance(one, ModuleType):
            registry.add_module(one)
        else:
            registry.add(one if isinstance(one, Executor) else declared(one))
    return registry
