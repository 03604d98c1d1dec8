"""Client: enqueue jobs and ask about them, from blocking code and any thread."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar, Unpack, overload

import psycopg
from psycopg.rows import TupleRow

from dispatcher import connecting
from dispatcher.db import explained
from dispatcher.executor import Registry
from dispatcher.front.batches import Batches
from dispatcher.front.control import ControlFront
from dispatcher.front.ended import EndedJobs
from dispatcher.front.explain import ExplainFront
from dispatcher.front.schedules import SchedulesFront
from dispatcher.front.stats import StatsFront
from dispatcher.front.tokens import TokensFront
from dispatcher.job import JobInfo
from dispatcher.operations import Operations
from dispatcher.options import Duration, Options
from dispatcher.queries import fleet
from dispatcher.queries.fleet import LeaderInfo, ReplicaInfo, TypeInfo
from dispatcher.queries.operation import Operation, Pause, Query, Rows, ask, failure, perform
from dispatcher.store import load_result

T = TypeVar("T")
Connection = psycopg.Connection[TupleRow]
Infos = list[JobInfo]
Lines = Iterator[list[tuple[int, str]]]


class Client(Batches, ControlFront, EndedJobs, ExplainFront, SchedulesFront, StatsFront, TokensFront):
    """Talks to the dispatcher's database over one connection, opened when needed, again after a loss.

    Any number of threads may share it. With `conn` a method works inside the transaction of that psycopg
    connection and commits nothing; an SQL error leaves that transaction aborted, as any SQL error does.
    `registry`: executors of this process, whose payload models then check payloads; those of other types are
    checked against the schema that the replicas have published. It works through a transaction-pooling
    pgbouncer. Every method raises DatabaseUnavailable where PostgreSQL cannot be reached; an enqueue that
    fails so without `conn` may have been recorded all the same: give a `unique_key` where that matters.
    """

    def __init__(self, dsn: str = "", *, registry: Registry | None = None) -> None:
        self._params = connecting.client_params(dsn)
        self._operations = Operations(registry)
        self._lock = threading.Lock()
        self._conn: Connection | None = None
        self._pid = os.getpid()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; another call opens one again."""
        with self._lock:
            self._drop()

    def enqueue(
        self,
        type: str,
        payload: Any = None,
        *,
        conn: psycopg.Connection[Any] | None = None,
        **options: Unpack[Options],
    ) -> int:
        """Enqueues a job; returns its id, or that of the unfinished one with the same `unique_key`.

        `payload` is a dict or an instance of a pydantic model. Options: priority (lower runs first), run_at
        (an aware datetime) or delay (a timedelta, seconds, or "5s"), tenant, unique_key, max_attempts,
        timeout, after (an id or several: runs once these have ended), on_failure ("cancel", or "run", if one
        of them does not succeed), parent (an open batch that it joins). Raises UnknownType, InvalidPayload,
        PayloadTooLarge, InvalidOption, and WrongState for a batch that has ended; nothing was enqueued then.
        """
        return self.enqueue_unique(type, payload, conn=conn, **options)[0]

    def enqueue_unique(
        self,
        type: str,
        payload: Any = None,
        *,
        conn: psycopg.Connection[Any] | None = None,
        **options: Unpack[Options],
    ) -> tuple[int, bool]:
        """As enqueue; returns (id, whether it is a new job)."""
        operation = self._operations.enqueue(type, payload, options)
        return self._do(operation, conn)

    def enqueue_many(
        self,
        type: str,
        payloads: Iterable[Any],
        *,
        conn: psycopg.Connection[Any] | None = None,
        **options: Unpack[Options],
    ) -> list[int]:
        """Enqueues one job a payload, all or none; ids in their order. An error counts payloads from 1."""
        operation = self._operations.enqueue_many(type, payloads, options)
        return self._do(operation, conn, atomic=True)

    def enqueue_lines(self, type: str, chunks: Lines, **options: Unpack[Options]) -> list[int]:
        """Enqueues one job a line of NDJSON, all or none, as a stream: chunks of (line number, text)."""
        return self._do(self._operations.enqueue_lines(type, chunks, options), atomic=True)

    def enqueue_text(self, type: str, text: str, **options: Unpack[Options]) -> tuple[int, bool]:
        """As enqueue_unique, for a payload that is JSON text."""
        return self._do(self._operations.enqueue_text(type, text, options))

    def get(self, id: int) -> JobInfo:
        """The job as it is now. Raises JobNotFound."""
        return self._do(self._operations.get(id))

    def result(self, id: int) -> Any:
        """The result of a job that succeeded or is partial, also a large one that is in the store.

        Raises JobFailed; WrongState before its end; StoreError where the store cannot be read.
        """
        job = self._do(self._operations.result(id))
        return load_result(job.result, job.result_url)

    @overload
    def wait(self, id: int, timeout: Duration | None = None) -> JobInfo: ...
    @overload
    def wait(self, id: Sequence[int], timeout: Duration | None = None) -> Infos: ...
    def wait(self, id: int | Sequence[int], timeout: Duration | None = None) -> JobInfo | Infos:
        """Waits until the job, or all of the jobs, ended in any way. Raises TimeoutError, JobNotFound."""
        ids = [id] if isinstance(id, int) else id
        ended = self._do(self._operations.wait(ids, timeout))
        return ended[0] if isinstance(id, int) else ended

    def cancel(self, id: int, *, conn: psycopg.Connection[Any] | None = None) -> str:
        """`canceled`, or `running` if it was asked to stop. Raises JobNotFound; WrongState after its end."""
        operation = self._operations.cancel(id)
        return self._do(operation, conn)

    def retry(self, id: int, *, conn: psycopg.Connection[Any] | None = None) -> str:
        """Runs an ended job again, or a scheduled one at once; of a batch, its failed and canceled jobs.

        Returns the state: `pending`; `blocked`, if it waits for others again; `running` of a batch.
        Raises JobNotFound, WrongState, UniqueConflict.
        """
        operation = self._operations.retry(id)
        return self._do(operation, conn)

    def types(self) -> list[TypeInfo]:
        """The types that replicas have published."""
        return self._do(fleet.list_types())

    def replicas(self) -> list[ReplicaInfo]:
        """The daemons, living or just gone."""
        return self._do(fleet.show_replicas())

    def leader(self, lease: str = "default") -> LeaderInfo | None:
        """Who leads right now, or None."""
        return self._do(fleet.show_lease(lease))

    def ask_to_resign(self, lease: str = "default") -> tuple[int, int] | None:
        """Asks the leader to give the lease away, which it does soon: (replica, term), or None without one."""
        return self._do(fleet.ask_to_resign(lease))

    def _do(self, operation: Operation[T], conn: psycopg.Connection[Any] | None = None, *, atomic: bool = False) -> T:
        if conn is not None:
            return perform(conn, operation, atomic=atomic)
        return self._atomically(operation) if atomic else self._run(operation)

    def _run(self, operation: Operation[T]) -> T:
        """Drives an operation whose statements stand each for itself."""
        try:
            step = next(operation)
            while True:
                match step:
                    case Pause(seconds=seconds):
                        time.sleep(seconds)
                        step = operation.send([])
                    case Query():
                        try:
                            rows = self._ask(step)
                        except (psycopg.Error, UnicodeError) as exc:
                            step = operation.throw(failure(exc))
                        else:
                            step = operation.send(rows)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]

    def _atomically(self, operation: Operation[T]) -> T:
        """Drives an operation inside one transaction."""
        try:
            with self._lock:
                return perform(self._connection(), operation, atomic=True)
        except psycopg.Error as exc:
            raise failure(exc) from exc

    def _ask(self, query: Query) -> Rows:
        with self._lock:
            conn = self._connection()
            try:
                return ask(conn, query, prepare=query.often)
            except connecting.UNPREPARED:
                if conn.prepare_threshold is None:
                    raise
                conn.prepare_threshold = None
                return ask(conn, query)
            except connecting.UNDONE:  # as it may by the role's default isolation level, which is not ours
                with conn.transaction():
                    return ask(conn, query)
            except psycopg.OperationalError:
                if not conn.closed or not query.reads:
                    raise
            return ask(self._connection(), query)

    def _connection(self) -> Connection:
        if self._pid != os.getpid():
            self._conn, self._pid = None, os.getpid()  # the parent's: a fork must not even close it
        if self._conn is not None and not connecting.usable(self._conn.pgconn):
            self._drop()
        if self._conn is None:
            with explained():
                self._conn = psycopg.connect(**self._params)
            self._conn.isolation_level = psycopg.IsolationLevel.READ_COMMITTED  # of transactions that we begin
            if connecting.is_direct(self._conn, ask(self._conn, connecting.BACKEND)):
                self._conn.prepare_threshold = connecting.WHEN_ASKED
        return self._conn

    def _drop(self) -> None:
        if self._conn is not None and self._pid == os.getpid():
            self._conn.close()
        self._conn = None
