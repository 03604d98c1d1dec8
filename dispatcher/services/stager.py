"""The stager makes due jobs pending. It sleeps until the earliest one is due, or until it is told of an earlier one.

With the same look it sees for the linker whether there are marks: nobody notifies of them while the leader is awake.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import psycopg

from dispatcher.db import Connection, first_line, patiently
from dispatcher.metrics import Metrics
from dispatcher.queries import upkeep

log = logging.getLogger("dispatcher.stager")

BATCH = 1000
BUSY_LOOK_S = 0.1  # while the leader is awake nobody notifies: look often


class Stager:
    """Works only while this replica leads."""

    def __init__(
        self,
        *,
        open_session: Callable[[], Connection],
        leading: Callable[[], bool],
        awake: Callable[[], bool],
        promoted: Callable[[], None],
        marked: Callable[[], None],
        poll_interval_s: float,
        metrics: Metrics,
        stop: threading.Event,
    ) -> None:
        self._open_session = open_session
        self._leading = leading
        self._awake = awake
        self._promoted = promoted
        self._marked = marked
        self._poll_interval_s = poll_interval_s
        self._metrics = metrics
        self._stop = stop
        self._woken = threading.Event()
        self._conn: Connection | None = None

    def wake(self) -> None:
        """A job may be due earlier than known, or this replica has come to lead."""
        self._woken.set()

    def step(self) -> None:
        """Promotes what is due, then sleeps until more is."""
        self._woken.clear()
        pause_s = self._poll_interval_s
        if self._leading():
            try:
                pause_s = self.promote()
            except psycopg.Error as exc:
                self._metrics.db_errors.inc()
                log.warning("the stager's session is lost: %s", first_line(exc))
                self.close()
        else:
            self.close()  # a standby keeps no session it does not need
            pause_s = 60.0
        if pause_s > 0:
            self._woken.wait(pause_s)

    def promote(self) -> float:
        """Promotes what is due; seconds until it has to look again."""
        if self._conn is None:
            self._conn = patiently(self._open_session, stop=self._stop)
            if self._conn is None:
                return 0.0
        awake = self._awake()  # before the look: who dozes in between was told of nothing that the look can miss
        due_s, marked = upkeep.next_due(self._conn)
        if marked:
            self._marked()
        if due_s is not None and due_s <= 0:
            count = upkeep.promote_jobs(self._conn, BATCH)
            if count:
                self._promoted()
                return 0.0
            return BUSY_LOOK_S  # due, but somebody holds the row locked
        longest = min(self._poll_interval_s, BUSY_LOOK_S) if awake else self._poll_interval_s
        return longest if due_s is None else min(longest, due_s + 0.001)

    def close(self) -> None:
        """Closes the session."""
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()
