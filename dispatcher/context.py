"""Context: what a running job can do besides its work."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any, Protocol

from dispatcher.batch import Callback
from dispatcher.job import CancelReason, Job, JobInfo
from dispatcher.store_source import Source

if TYPE_CHECKING:
    from psycopg import Connection

_log = logging.getLogger("dispatcher.job")
_LOCK = threading.Lock()  # one for all contexts: held for a few instructions, when a job is canceled or begins to wait


class Interrupted(BaseException):
    """Raised by raise_if_canceled(). No Exception, so that an executor's `except Exception` lets it pass."""

    def __init__(self, reason: CancelReason) -> None:
        super().__init__(f"interrupted: {reason}")
        self.reason = reason


class Runtime(Protocol):
    """What the daemon lends to its jobs."""

    max_result_bytes: int
    """A result of more bytes goes to the store."""

    def report_progress(self, job_id: int, attempt: int, percent: float, message: str | None) -> None:
        """Takes note of the latest progress; it is written in groups."""

    def connect(self) -> Connection[Any]:
        """A new connection to the dispatcher's database, in a transaction as psycopg opens it."""

    def enqueue(self, conn: Connection[Any] | None, type: str, payload: Any, options: dict[str, Any]) -> int:
        """Enqueues another job, on `conn` where given; returns its id."""

    def enqueue_batch(
        self,
        conn: Connection[Any] | None,
        job: Job,
        type: str,
        payloads: Iterable[Any],
        callback: str | Callback | None,
        options: dict[str, Any],
    ) -> int:
        """Enqueues a batch that is canceled with the job; its id. Raises Cancel where the job was asked to stop."""

    def predecessors(self, job_id: int) -> list[JobInfo]:
        """The jobs after which it was enqueued."""

    def results(self, job_id: int) -> dict[int, Any]:
        """The results of those of them that ended well, by id."""

    def complete(self, conn: Connection[Any], job: Job, result: Any, result_url: str | None) -> None:
        """Records success on `conn`, or raises AttemptLost or UnsafeTransaction."""

    def completed(self, job: Job) -> bool | None:
        """Whether the attempt has completed itself, by its row; None where it is no longer the running one."""

    def store(self, job: Job, name: str, source: Source, check: Callable[[], None]) -> str:
        """Stores a file of this attempt; returns its URL."""

    def store_result(self, job: Job, text: str) -> str:
        """The same for a result that is too large for its row; raises ResultTooLarge without a store."""

    def checkpoint(self, conn: Connection[Any], job: Job, value: Any) -> None:
        """Leaves a value for the next attempt on `conn`, or raises the same."""


class Context:
    """Given to each execution. Safe to use from threads that the executor starts."""

    # What few jobs touch is left to the class: one of these is made for each execution.
    completed = False
    """True once complete() was called; the row then says whether it took effect."""
    completed_with: Any = None
    """The result that complete() was given."""
    result_url: str | None = None
    """Of the latest file that store() took: the job's `result_url` if it ends well."""
    _reason: CancelReason | None = None
    _event: threading.Event | None = None
    _callbacks: tuple[Callable[[], None], ...] = ()
    _logger: logging.LoggerAdapter[logging.Logger] | None = None

    def __init__(
        self, job: Job, *, timeout_s: float | None, runtime: Runtime, clock: Callable[[], float] = time.monotonic
    ):
        self.job = job
        self.attempt = job.attempt
        """Rises with each execution of the job: the fencing token for systems outside the database."""
        self.deadline = None if timeout_s is None else clock() + timeout_s
        """When the job will be timed out, in time.monotonic() seconds; None for never."""
        self._runtime = runtime

    @property
    def canceled(self) -> CancelReason | None:
        """None, or why the job should stop: requested, timeout, shutdown or lost."""
        return self._reason

    def raise_if_canceled(self) -> None:
        """Ends the job here and now if it was asked to stop."""
        if self._reason is not None:
            raise Interrupted(self._reason)

    def sleep(self, seconds: float) -> None:
        """Waits, and raises at once when the job is asked to stop."""
        with _LOCK:
            if self._event is None:
                self._event = threading.Event()
                if self._reason is not None:
                    self._event.set()
        self._event.wait(seconds)
        self.raise_if_canceled()

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Calls `callback` once, in another thread, when the job is asked to stop; here and now if it already was."""
        with _LOCK:
            if self._reason is None:
                self._callbacks += (callback,)
                return
        callback()

    def cancel(self, reason: CancelReason) -> None:
        """Asks the job to stop. The first reason stays. Callbacks run in their own thread: who asks must not wait."""
        with _LOCK:
            if self._reason is None:
                self._reason = reason
            callbacks, self._callbacks = self._callbacks, ()
            if self._event is not None:
                self._event.set()
        if callbacks:
            threading.Thread(target=self._call, args=(callbacks,), name=f"cancel {self.job.id}", daemon=True).start()

    def progress(self, percent: float, message: str | None = None) -> None:
        """Says how far the job is, 0 to 100, with a word. Cheap in a tight loop: the latest is written now and then."""
        share = min(100.0, max(0.0, float(percent)))
        # Rounded, for PostgreSQL refuses a number that is too small for the column, and with it everybody's progress.
        self._runtime.report_progress(self.job.id, self.attempt, round(share, 3), message)

    def connect(self) -> Connection[Any]:
        """A new connection to the dispatcher's database; close it yourself (`with ctx.connect() as conn:`)."""
        return self._runtime.connect()

    def enqueue(self, type: str, payload: Any = None, *, conn: Connection[Any] | None = None, **options: Any) -> int:
        """Enqueues another job, inside the transaction of `conn` where given; returns its id."""
        return self._runtime.enqueue(conn, type, {} if payload is None else payload, options)

    def enqueue_batch(
        self,
        type: str,
        payloads: Iterable[Any],
        *,
        callback: str | Callback | None = None,
        conn: Connection[Any] | None = None,
        **options: Any,
    ) -> int:
        """Enqueues a batch as Client.batch does, in the transaction of `conn` where given; returns its id.

        It is canceled when this job is, also while the job sleeps between two tries. Where the job was asked to stop
        already, it ends as canceled here. Raises AttemptLost and UnsafeTransaction as complete() does.
        """
        return self._runtime.enqueue_batch(conn, self.job, type, payloads, callback, options)

    def predecessors(self) -> list[JobInfo]:
        """The jobs after which this one was enqueued, as they are now."""
        return self._runtime.predecessors(self.job.id)

    def results(self) -> dict[int, Any]:
        """The results of those of the predecessors that succeeded or are partial, by id; of a batch its counts.

        Large ones are read from the store. Raises StoreError where that cannot be done.
        """
        return self._runtime.results(self.job.id)

    def complete(self, conn: Connection[Any], result: Any = None) -> None:
        """Ends the job as succeeded inside the transaction of `conn`: its writes and this outcome commit together.

        Commit afterwards and return. Raises AttemptLost where this attempt is no longer the running one, and
        UnsafeTransaction where `conn` is in autocommit, inside a savepoint, or connected to another database.
        """
        self._runtime.complete(conn, self.job, result, self.result_url)
        self.completed, self.completed_with = True, result

    def store(self, name: str, source: Source) -> str:
        """Stores a file beside the job and returns its URL; the latest one becomes the job's `result_url`.

        `source` is bytes, a Path, or a stream opened for bytes, which is copied in chunks. The file is whole, or
        not there; it stays until the job is removed. Stops where the job is asked to stop. Raises StoreError where no
        store is set, or for a name that is empty, longer than 200 characters, `.`, `..`, or has a `/` or NUL in it.
        """
        self.result_url = self._runtime.store(self.job, name, source, self.raise_if_canceled)
        return self.result_url

    def checkpoint(self, conn: Connection[Any], value: Any) -> None:
        """Leaves `value` for the next attempt (`job.checkpoint`), inside the transaction of `conn`; errors as
        complete().
        """
        self._runtime.checkpoint(conn, self.job, value)

    @property
    def logger(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that names the job."""
        if self._logger is None:
            self._logger = _JobLogger(_log, {"job_id": self.job.id, "job_type": self.job.type, "attempt": self.attempt})
        return self._logger

    def _call(self, callbacks: tuple[Callable[[], None], ...]) -> None:
        for callback in callbacks:
            try:
                callback()
            except BaseException:
                self.logger.exception("a cancel callback failed")


class _JobLogger(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs.setdefault("extra", {}).update(self.extra or {})
        return msg, kwargs
