"""The pruner removes finished jobs past their retention, a small page at a time, walking up the primary key."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import timedelta

import psycopg

from dispatcher.db import Connection, first_line, patiently
from dispatcher.metrics import Metrics
from dispatcher.queries import upkeep

log = logging.getLogger("dispatcher.pruner")

PAGE = 2000
PAGE_PAUSE_S = 0.02  # leaves the database to the jobs between two pages
WALK_EVERY_S = 60.0


class Pruner:
    """Works only while this replica leads. Counts jobs for the metrics on the same occasion."""

    def __init__(
        self,
        *,
        open_session: Callable[[], Connection],
        leading: Callable[[], bool],
        keep_succeeded: timedelta,
        keep_failed: timedelta,
        metrics: Metrics,
        stop: threading.Event,
    ) -> None:
        self._open_session = open_session
        self._leading = leading
        self._keep_succeeded = keep_succeeded
        self._keep_failed = keep_failed
        self._metrics = metrics
        self._stop = stop
        self._after = 0
        self._conn: Connection | None = None

    def step(self) -> None:
        """One page, and the pause after it."""
        if not self._leading():
            self.close()
            self._stop.wait(1.0)
            return
        walked = True
        try:
            walked = self.prune_page()
        except psycopg.Error as exc:
            self._metrics.db_errors.inc()
            log.warning("the pruner's session is lost: %s", first_line(exc))
            self.close()
        self._stop.wait(
            min(WALK_EVERY_S, max(0.1, self._keep_succeeded.total_seconds() / 10)) if walked else PAGE_PAUSE_S
        )

    def prune_page(self) -> bool:
        """Removes what has expired in the next page; True at the end of a walk."""
        if self._conn is None:
            self._conn = patiently(self._open_session, stop=self._stop)
            if self._conn is None:
                return True
        last_id, pruned, young = upkeep.prune_jobs(
            self._conn, after=self._after, page=PAGE, keep_succeeded=self._keep_succeeded, keep_failed=self._keep_failed
        )
        if pruned:
            log.debug("removed finished jobs", extra={"jobs": pruned})
        ended = last_id is None or young
        self._after = 0 if ended or last_id is None else last_id
        return ended

    def close(self) -> None:
        """Closes the session."""
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()
