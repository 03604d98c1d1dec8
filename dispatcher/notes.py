"""What is written of attempts while they run: their progress, and that they are past their timeout and not back.

Written in groups, a few times a second. A row that somebody holds locked is passed by and waits for the next time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable

import psycopg

from dispatcher.db import Connection, first_line
from dispatcher.inflight import Execution
from dispatcher.outcome import STUCK, JobError
from dispatcher.queries import outcomes as statements
from dispatcher.queries.outcomes import Attempt

log = logging.getLogger("dispatcher.notes")

WRITE_EVERY_S = 0.2

REFUSED = (psycopg.DataError, psycopg.errors.ProgramLimitExceeded, psycopg.errors.StatementTooComplex)
"""What PostgreSQL says of a value that it cannot store."""

Progress = dict[Attempt, tuple[float, str | None]]


class Notes:
    """Gathers notes of what `owner` runs, in any thread, and writes them in one."""

    def __init__(self, *, owner: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._owner = owner
        self._clock = clock
        self._lock = threading.Lock()
        self._progress: Progress = {}
        self._timed_out: dict[Attempt, str] = {}  # and the error that says so, as JSON
        self._due = 0.0

    def __bool__(self) -> bool:
        return bool(self._progress or self._timed_out)

    @property
    def due_in_s(self) -> float:
        """Until they may be written."""
        return max(0.0, self._due - self._clock())

    def report_progress(self, job_id: int, attempt: int, percent: float, message: str | None) -> bool:
        """The latest progress wins. True if there was none of any job. Any thread."""
        with self._lock:
            first = not self._progress
            self._progress[job_id, attempt] = (percent, message)
        return first

    def note_timed_out(self, execution: Execution) -> None:
        """Its time is over, and its thread is not back. Any thread."""
        with self._lock:
            self._timed_out[execution.key] = stuck_error(execution)

    def write(self, conn: Connection, ending: Collection[Attempt]) -> Iterable[int]:
        """Writes what is due, or what is the last word of attempts that end; the jobs whose progress was looked at."""
        # A job's last word must be in its row before the outcome is: afterwards the row is no longer running.
        if not self or (self.due_in_s > 0 and not any(key in self._progress for key in ending)):
            return ()
        self._due = self._clock() + WRITE_EVERY_S
        with self._lock:
            progress, self._progress = self._progress, {}
            timed_out, self._timed_out = self._timed_out, {}
        try:
            if progress:
                self._write_progress(conn, progress)
            if timed_out:
                self._mark_timed_out(conn, timed_out)
        except psycopg.Error as exc:
            self._put_back(progress, timed_out)
            if not isinstance(exc, psycopg.errors.LockNotAvailable):  # somebody's lock on the whole table is no loss
                raise
            return ()
        return [id for id, _attempt in progress]

    def _write_progress(self, conn: Connection, progress: Progress) -> None:
        """What the database refuses is dropped: nothing that a job says may hold up the outcomes."""
        try:
            missed = progress.keys() - statements.write_progress(conn, self._owner, progress)
        except REFUSED as exc:
            if len(progress) > 1:
                for key, said in progress.items():
                    self._write_progress(conn, {key: said})
                return
            ((job_id, _attempt),) = progress
            log.warning("progress cannot be written: %s", first_line(exc), extra={"job_id": job_id})
            return
        self._put_back({key: progress[key] for key in self._locked(conn, missed)}, {})

    def _mark_timed_out(self, conn: Connection, errors: dict[Attempt, str]) -> None:
        """Who rescues the job goes by this mark."""
        missed = errors.keys() - statements.mark_timed_out(conn, self._owner, errors)
        self._put_back({}, {key: errors[key] for key in self._locked(conn, missed)})

    def _locked(self, conn: Connection, missed: Collection[Attempt]) -> set[Attempt]:
        """Of attempts whose rows did not take a note, those that still run."""
        return statements.list_still_running(conn, self._owner, list(missed)) if missed else set()

    def _put_back(self, progress: Progress, timed_out: dict[Attempt, str]) -> None:
        """To be written later, unless there is something newer."""
        with self._lock:
            self._progress = progress | self._progress
            self._timed_out = timed_out | self._timed_out


def stuck_error(execution: Execution) -> str:
    """What a row says of an attempt that is past its timeout and not back, as JSON."""
    return JobError("timeout", STUCK, execution.stack).as_json_array()
