"""Counts jobs for the metrics: seldom, and the seldomer the longer it takes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import psycopg

from dispatcher.db import Connection, first_line, patiently
from dispatcher.metrics import Metrics
from dispatcher.queries import upkeep

log = logging.getLogger("dispatcher.gauges")

COUNT_EVERY_S = 15.0
FAILED_PAUSE_S = 600.0  # a count that runs into a time-out must not be asked again at once
COST = 50  # times what a count took, at least


class Gauges:
    """Works only while this replica leads; a standby shows no counts, so that a sum over replicas is right."""

    def __init__(
        self,
        *,
        open_session: Callable[[], Connection],
        leading: Callable[[], bool],
        metrics: Metrics,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_session = open_session
        self._leading = leading
        self._metrics = metrics
        self._stop = stop
        self._clock = clock
        self._due = 0.0
        self._conn: Connection | None = None

    def step(self) -> None:
        """Counts if it is time, then pauses."""
        try:
            if not self._leading():
                self._forget()
            elif self._clock() >= self._due:
                self.count()
        except psycopg.Error as exc:
            self._metrics.db_errors.inc()
            log.warning("the gauges' session is lost: %s", first_line(exc))
            self.close()
        self._stop.wait(1.0)

    def count(self) -> None:
        """Counts now."""
        if self._conn is None:
            self._conn = patiently(self._open_session, stop=self._stop)
            if self._conn is None:
                return
        began = self._clock()
        self._due = began + FAILED_PAUSE_S  # should it fail
        counts = upkeep.count_jobs(self._conn)
        took = self._clock() - began
        self._due = self._clock() + max(COUNT_EVERY_S, COST * took)
        self._metrics.by_state.clear()
        self._metrics.oldest.clear()
        for count in counts:
            self._metrics.by_state.labels(count.type, count.state).set(count.jobs)
            if count.oldest_s is not None:
                self._metrics.oldest.labels(count.type).set(max(0.0, count.oldest_s))

    def close(self) -> None:
        """Closes the session."""
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()

    def _forget(self) -> None:
        if self._conn is not None:
            self._metrics.by_state.clear()
            self._metrics.oldest.clear()
            self._due = 0.0
            self.close()
