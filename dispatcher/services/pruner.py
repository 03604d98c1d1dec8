"""The pruner removes finished jobs past their retention, a small page at a time, walking up the primary key.

What a job stored goes after its row. A crash in between, and attempts that failed, leave files that no row names: so
now and then a second walk, through the store, removes the files of jobs that exist no more.
Old tallies go once a minute.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import islice

import psycopg

from dispatcher.db import Connection, first_line, patiently
from dispatcher.metrics import Metrics
from dispatcher.queries import stats, upkeep
from dispatcher.store import Store
from dispatcher.trouble import Trouble, undone

log = logging.getLogger("dispatcher.pruner")

PAGE = 2000
PAGE_PAUSE_S = 0.02  # leaves the database to the jobs between two pages
WALK_EVERY_S = 60.0
SWEEP_EVERY_S = 3600.0
TALLIES_EVERY_S = 60.0
MAX_TROUBLES = 3  # files that cannot be removed: then the store is left alone for this page


class Pruner:
    """Works only while this replica leads. Counts jobs for the metrics on the same occasion."""

    def __init__(
        self,
        *,
        open_session: Callable[[], Connection],
        leading: Callable[[], bool],
        keep_succeeded: timedelta,
        keep_failed: timedelta,
        store: Store | None = None,
        metrics: Metrics,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_session = open_session
        self._leading = leading
        self._keep_succeeded = keep_succeeded
        self._keep_failed = keep_failed
        self._store = store
        self._trouble = Trouble("the pruner's session", log=log, metrics=metrics)
        self._stop = stop
        self._clock = clock
        self._after = 0
        self._sweep: Iterator[int] | None = None  # through the jobs in the store
        self._sweep_due = 0.0
        self._tallies_due = 0.0
        self._conn: Connection | None = None

    def step(self) -> None:
        """One page, and the pause after it."""
        if not self._leading():
            self.close()
            self._stop.wait(1.0)
            return
        walked = True
        try:
            walked = self.prune_page() and self.sweep_page() and self.prune_tallies() and self.prune_answers()
        except psycopg.Error as exc:
            kept = undone(self._conn, exc)
            if not kept:
                self.close()
            self._stop.wait(self._trouble.note(exc, kept=kept))
        else:
            self._trouble.over()
        self._stop.wait(
            min(WALK_EVERY_S, max(0.1, self._keep_succeeded.total_seconds() / 10)) if walked else PAGE_PAUSE_S
        )

    def prune_page(self) -> bool:
        """Removes what has expired in the next page; True at the end of a walk."""
        if (conn := self._session()) is None:
            return True
        page = upkeep.prune_jobs(
            conn, after=self._after, page=PAGE, keep_succeeded=self._keep_succeeded, keep_failed=self._keep_failed
        )
        if page.jobs:
            log.debug("removed finished jobs", extra={"jobs": page.jobs})
        self._remove(page.stored)
        ended = page.last_id is None or bool(page.young)
        self._after = 0 if ended or page.last_id is None else page.last_id
        return ended

    def sweep_page(self) -> bool:
        """Removes what jobs stored that exist no more, of the next in the store; True at the end of this walk."""
        if self._store is None or (self._sweep is None and self._clock() < self._sweep_due):
            return True
        if (conn := self._session()) is None:
            return True
        try:
            if self._sweep is None:
                self._sweep = self._store.job_ids()
            ids = list(islice(self._sweep, PAGE))
        except Exception as exc:  # noqa: BLE001 - each kind of store has errors of its own
            log.warning("cannot look through the store: %s", first_line(exc))
            ids = []
        self._remove(upkeep.list_vanished(conn, ids) if ids else [])
        if len(ids) == PAGE:
            return False
        self._sweep, self._sweep_due = None, self._clock() + SWEEP_EVERY_S
        return True

    def prune_tallies(self) -> bool:
        """Removes a page of the tallies that no window reaches any more; True once there are none."""
        if self._clock() < self._tallies_due or (conn := self._session()) is None:
            return True
        if stats.prune_tallies(conn, PAGE) >= PAGE:
            return False
        self._tallies_due = self._clock() + TALLIES_EVERY_S
        return True

    def prune_answers(self) -> bool:
        """Removes a page of answers kept for requests that are sent again, after their day; True once none is left."""
        conn = self._session()
        return conn is None or upkeep.prune_answers(conn, PAGE) < PAGE

    def close(self) -> None:
        """Closes the session."""
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()

    def _session(self) -> Connection | None:
        if self._conn is None:
            self._conn = patiently(self._open_session, stop=self._stop, failed=self._trouble.note)
        return self._conn

    def _remove(self, job_ids: list[int]) -> None:
        """The files of jobs that exist no more; what cannot be removed now is found by the next walk."""
        troubles = 0
        for id in job_ids if self._store is not None else ():
            assert self._store is not None
            try:
                self._store.remove(id)
            except Exception as exc:  # noqa: BLE001 - each kind of store has errors of its own
                troubles += 1
                log.warning("cannot remove what a job stored: %s", first_line(exc), extra={"job_id": id})
                if troubles == MAX_TROUBLES:
                    return
