"""What the daemon lends to its jobs behind the Context: connections, progress, enqueueing, completion."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast
from uuid import UUID

import psycopg
from psycopg.rows import TupleRow

from dispatcher.batch import Callback
from dispatcher.client import Client
from dispatcher.db import Connection, check_dsn, first_line, writable
from dispatcher.errors import (
    BY_SQLSTATE,
    DatabaseUnavailable,
    DispatcherError,
    JobNotFound,
    ResultTooLarge,
    StoreError,
    UnsafeTransaction,
)
from dispatcher.executor import Cancel, Registry
from dispatcher.job import Job, JobInfo, State
from dispatcher.options import Options
from dispatcher.outcome import MAX_MESSAGE, encode, storable
from dispatcher.sql import statement
from dispatcher.store import Store, load_result
from dispatcher.store_source import RESULT, Source, check_name


class JobRuntime:
    """Implements dispatcher.context.Runtime for what the replica `owner` runs in this process.

    Without a `dsn`, whatever needs the database raises.
    """

    def __init__(
        self,
        *,
        dsn: str | None,
        installation: UUID,
        owner: int,
        registry: Registry | None = None,
        store: Store | None = None,
        max_result_bytes: int = 1024 * 1024,
    ) -> None:
        self.max_result_bytes = max_result_bytes
        self._store = store
        self._dsn = dsn
        self._installation = installation
        self._owner = owner
        self._own_client = None if dsn is None else Client(dsn, registry=registry)
        self.progress: Any = None  # set by the daemon: the completer takes it

    def close(self) -> None:
        """Closes what was kept open."""
        if self._own_client is not None:
            self._own_client.close()

    def report_progress(self, job_id: int, attempt: int, percent: float, message: str | None) -> None:
        """Hands the latest progress to whoever writes it."""
        # Made storable here, in the job's own thread: what the group could not write would be everybody's error.
        self.progress(job_id, attempt, percent, None if message is None else storable(str(message))[:MAX_MESSAGE])

    def connect(self) -> Connection:
        """A connection for a job's own work: none of the daemon's settings, in a transaction as psycopg opens it."""
        try:
            if self._dsn is None:
                raise DispatcherError(_NO_DSN)
            params = {"connect_timeout": 10, "application_name": "dispatcher job", **writable(check_dsn(self._dsn))}
            params["client_encoding"] = "utf8"  # a job's texts are Unicode, whatever the role's default
            return psycopg.connect(**params)
        except psycopg.OperationalError as exc:
            raise DatabaseUnavailable(f"cannot connect to PostgreSQL: {first_line(exc)}") from exc

    def enqueue(self, conn: Connection | None, type: str, payload: Any, options: dict[str, Any]) -> int:
        """Enqueues on `conn`, or on the client's own connection."""
        return self._client.enqueue(type, payload, conn=conn, **cast(Options, options))

    def enqueue_batch(
        self,
        conn: Connection | None,
        job: Job,
        type: str,
        payloads: Iterable[Any],
        callback: str | Callback | None,
        options: dict[str, Any],
    ) -> int:
        """See Context.enqueue_batch."""
        if conn is None:
            with self.connect() as own:
                return self.enqueue_batch(own, job, type, payloads, callback, options)
        _require_transaction(conn)
        id = self._client.batch(type, payloads, callback=callback, conn=conn, **cast(Options, options))
        (free,) = self._in_transaction(conn, "own_batch", job, {"batch": id})
        if not free:
            raise Cancel
        return id

    def predecessors(self, job_id: int) -> list[JobInfo]:
        """The jobs after which a job was enqueued."""
        return self._client.predecessors(job_id)

    def results(self, job_id: int) -> dict[int, Any]:
        """The results of those of them that ended well, by id."""
        return {
            job.id: load_result(job.result, job.result_url)
            for job in self._client.predecessors(job_id)
            if job.state in (State.SUCCEEDED, State.PARTIAL)
        }

    def complete(self, conn: Connection, job: Job, result: Any, result_url: str | None) -> None:
        """Records success on the job's own connection; see Context.complete."""
        encoded = None if result is None else encode(result)  # as for a result that is returned
        if encoded is not None and len(encoded.encode()) > self.max_result_bytes:
            result_url = self.store_result(job, encoded)
            encoded = None
        self._in_transaction(conn, "complete_job", job, {"result": encoded, "result_url": result_url})

    def completed(self, job: Job) -> bool | None:
        """See dispatcher.context.Runtime."""
        try:
            row = self.get(job.id)
        except JobNotFound:  # nothing removes a running job: it had ended
            return True
        if row.attempt != job.attempt or row.state not in (State.RUNNING, State.SUCCEEDED):
            return None
        return row.state is State.SUCCEEDED

    def get(self, id: int) -> JobInfo:
        """A job as its row is now."""
        return self._client.get(id)

    def store(self, job: Job, name: str, source: Source, check: Callable[[], None]) -> str:
        """See Context.store."""
        if self._store is None:
            raise StoreError("there is no store: give the replicas the setting result_store, a folder or a URL")
        return self._store.put(job.id, job.attempt, check_name(name), source, check)

    def store_result(self, job: Job, text: str) -> str:
        """Stores a result; not stopped by a cancel, since the work is done."""
        data = text.encode()
        if self._store is None:
            raise ResultTooLarge(
                f"the result has {len(data)} bytes, max_result_bytes allows {self.max_result_bytes}, and there is no "
                "store: set result_store, or raise max_result_bytes"
            )
        return self._store.put(job.id, job.attempt, RESULT, data, lambda: None)

    def checkpoint(self, conn: Connection, job: Job, value: Any) -> None:
        """Leaves a value on the job's own connection; see Context.checkpoint."""
        self._in_transaction(conn, "checkpoint_job", job, {"value": encode(value)})

    @property
    def _client(self) -> Client:
        if self._own_client is None:
            raise DispatcherError(_NO_DSN)
        return self._own_client

    def _in_transaction(self, conn: Connection, name: str, job: Job, params: dict[str, Any]) -> TupleRow:
        """Raises AttemptLost unless this attempt runs, and is this replica's."""
        _require_transaction(conn)
        whose = {"id": job.id, "attempt": job.attempt, "owner": self._owner, "installation": self._installation}
        try:
            row = conn.execute(statement(name), whose | params).fetchone()
        except (
            psycopg.errors.UndefinedFunction,
            psycopg.errors.UndefinedTable,
            psycopg.errors.InvalidSchemaName,
        ) as exc:
            raise UnsafeTransaction(_WRONG_DATABASE) from exc
        except psycopg.Error as exc:
            raise _named(exc) from exc
        if row is None:
            raise UnsafeTransaction(_WRONG_DATABASE)
        return row


_NO_DSN = "jobs have no database here: set DISPATCHER_DSN in the environment of the Dask worker"
_WRONG_DATABASE = "the connection leads to another database than the dispatcher's"


def _require_transaction(conn: Connection) -> None:
    if conn.autocommit and conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
        raise UnsafeTransaction("the connection is in autocommit: open a transaction first")


def _named(exc: psycopg.Error) -> Exception:
    kind = BY_SQLSTATE.get(exc.sqlstate or "")
    return exc if kind is None else kind(exc.diag.message_primary or first_line(exc))
