"""The teller writes what this replica has tallied: every few seconds while something is settled, and once at the end.

A write that failed is kept and sent again under its number, so that it counts once even where only its answer was lost;
what is settled meanwhile adds up in the tally. A replica that settles nothing writes nothing, and opens no session.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import psycopg

from dispatcher.db import Connection, first_line, patiently
from dispatcher.errors import DispatcherError
from dispatcher.metrics import Metrics
from dispatcher.queries import stats
from dispatcher.tally import Counts, Key, Tally
from dispatcher.trouble import Trouble, undone

log = logging.getLogger("dispatcher.teller")

WRITE_EVERY_S = 5.0
COST = 50  # times what the writes took, at least: with very many tenants they stay below 2 % of the database's time
IDLE_S = 60.0
MAX_ROWS = 1000  # in a write: whoever adds to the same rows waits for its end
LOCK_S = 1.0  # so long a write may wait for that of another replica


class Teller:
    """Works on every replica. `wake` tells it that there is something in the tally."""

    def __init__(
        self,
        *,
        open_session: Callable[[], Connection],
        tally: Tally,
        replica: int,
        metrics: Metrics,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_session = open_session
        self._tally = tally
        self._replica = replica
        self._trouble = Trouble("the teller's session", log=log, metrics=metrics)
        self._stop = stop
        self._clock = clock
        self._woken = threading.Event()
        self._pause_s = WRITE_EVERY_S
        self._number = 1  # of the next write
        self._untold: deque[Sequence[tuple[Key, Counts]]] = deque()
        self._conn: Connection | None = None

    def wake(self) -> None:
        """There is something in the tally. Any thread."""
        self._woken.set()

    def step(self) -> None:
        """Waits for something to write, lets more come together, and writes."""
        self._woken.wait(IDLE_S)
        self._woken.clear()
        if not (self._tally or self._untold) or self._stop.wait(self._pause_s):
            return
        try:
            self.write()
        except psycopg.Error as exc:
            self._woken.set()
            if isinstance(exc, psycopg.errors.LockNotAvailable | psycopg.errors.DeadlockDetected):
                self._pause_s = WRITE_EVERY_S  # others hold the rows, and it waited at no cost
                return
            kept = undone(self._conn, exc)
            if not kept:
                self._disconnect()
            self._trouble.note(exc, kept=kept)
        else:
            self._trouble.over()

    def write(self) -> None:
        """Writes what was not told yet: first what failed before, under the number that it had."""
        if (conn := self._session()) is None:
            return
        began = self._clock()
        try:
            self._send(conn)
            self._take()
            self._send(conn)
        finally:  # also after one that ran into its time-out
            self._pause_s = max(WRITE_EVERY_S, COST * (self._clock() - began))

    def close(self) -> None:
        """Writes what is left, and closes the session."""
        try:
            if self._tally or self._untold:
                self.write()
        except (psycopg.Error, DispatcherError) as exc:
            log.warning("the last tallies could not be written: %s", first_line(exc))
        self._disconnect()

    def _send(self, conn: Connection) -> None:
        while self._untold:
            stats.add_tallies(conn, replica=self._replica, number=self._number, tallies=self._untold[0])
            self._untold.popleft()
            self._number += 1

    def _take(self) -> None:
        # Sorted, so that the rows of a write lie together in the table's index.
        taken = sorted(self._tally.take().items(), key=lambda item: (item[0][1], item[0][0]))
        self._untold.extend(taken[start : start + MAX_ROWS] for start in range(0, len(taken), MAX_ROWS))

    def _session(self) -> Connection | None:
        if self._conn is None:
            self._conn = patiently(self._open_session, stop=self._stop, failed=self._trouble.note)
        return self._conn

    def _disconnect(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()
