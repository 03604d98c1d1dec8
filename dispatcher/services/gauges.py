"""Counts jobs for the metrics: seldom, and the seldomer the longer it takes. Notes that somebody leads."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import psycopg

from dispatcher.db import Connection, patiently
from dispatcher.metrics import Metrics
from dispatcher.queries import upkeep
from dispatcher.queries.lease import note_leader
from dispatcher.trouble import Trouble, undone

log = logging.getLogger("dispatcher.gauges")

COUNT_EVERY_S = 15.0
FIRST_COUNT_S = 5.0  # into a term: what waits is started first, and counted then
FAILED_PAUSE_S = 600.0  # a count that runs into a time-out must not be asked again at once
COST = 50  # times what a count took, at least
NOTE_EVERY_S = 5.0  # so roughly is it known when a leader went


class Gauges:
    """Works only while this replica leads; a standby shows no counts, so that a sum over replicas is right."""

    def __init__(
        self,
        *,
        open_session: Callable[[], Connection],
        term: Callable[[], int | None],
        replica: int,
        lease_number: int,
        metrics: Metrics,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_session = open_session
        self._term = term
        self._replica = replica
        self._lease_number = lease_number
        self._metrics = metrics
        self._trouble = Trouble("the gauges' session", log=log, metrics=metrics)
        self._stop = stop
        self._clock = clock
        self._due = self._note_due = 0.0
        self._seen_term: int | None = None
        self._conn: Connection | None = None

    def step(self) -> None:
        """Counts, and notes that this replica leads, if it is time; then pauses."""
        try:
            term = self._term()
            if term != self._seen_term:
                self._seen_term, self._note_due, self._due = term, 0.0, self._clock() + FIRST_COUNT_S
            if term is None:
                self._forget()
            else:
                if self._clock() >= self._note_due:
                    self.note(term)
                if self._clock() >= self._due:
                    self.count()
        except psycopg.Error as exc:
            kept = undone(self._conn, exc)
            if not kept:
                self.close()
            self._trouble.note(exc, kept=kept)
        self._stop.wait(1.0)

    def note(self, term: int) -> None:
        """Notes in the lease's row that this term goes on."""
        if (conn := self._session()) is not None:
            self._note_due = self._clock() + NOTE_EVERY_S
            note_leader(conn, self._lease_number, self._replica, term)
            self._trouble.over()

    def count(self) -> None:
        """Counts now."""
        conn = self._session()
        if conn is None:
            return
        began = self._clock()
        self._due = began + FAILED_PAUSE_S  # should it fail
        counts = upkeep.count_jobs(conn)
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

    def _session(self) -> Connection | None:
        if self._conn is None:
            self._conn = patiently(self._open_session, stop=self._stop, failed=self._trouble.note)
        return self._conn

    def _forget(self) -> None:
        if self._conn is not None:
            self._metrics.by_state.clear()
            self._metrics.oldest.clear()
            self.close()
