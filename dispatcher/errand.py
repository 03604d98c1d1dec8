"""Errand: what the leader does beside its claims, on a session of its own, when woken or when its time has come."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import psycopg

from dispatcher.db import Connection, first_line, patiently
from dispatcher.metrics import Metrics

STANDBY_S = 60.0
SOON_S = 0.003
RETRY_S = 1.0  # after an error: a database in trouble is not asked at once again
_log = logging.getLogger("dispatcher.errand")


class Errand:
    """Works only while this replica leads; a stand-by keeps no session that it does not need. A child has `work`."""

    def __init__(
        self,
        *,
        open_session: Callable[[], Connection],
        leading: Callable[[], bool],
        metrics: Metrics,
        stop: threading.Event,
    ) -> None:
        self._open_session = open_session
        self._leading = leading
        self._metrics = metrics
        self._stop = stop
        self._woken = threading.Event()
        self._soon = False
        self._conn: Connection | None = None

    def work(self, conn: Connection) -> float:
        """Does what there is to do; seconds until there may be more, 0 for at once."""
        raise NotImplementedError

    def wake(self) -> None:
        """There may be something to do, or this replica has come to lead. Any thread."""
        self._woken.set()

    def wake_soon(self) -> None:
        """The same in a moment: what was enqueued is claimed first, and many notifications cost one look."""
        self._soon = True
        self._woken.set()

    def step(self) -> None:
        """Does what there is to do, then waits to be woken, or until there may be more."""
        if self._soon:
            self._soon = False
            self._stop.wait(SOON_S)
        self._woken.clear()
        if self._stop.is_set():  # after the clearing: who stops us sets that first, then wakes us
            return
        pause_s = STANDBY_S
        if self._leading():
            try:
                pause_s = self.turn()
            except psycopg.Error as exc:
                self._metrics.db_errors.inc()
                _log.warning("the %s's session is lost: %s", type(self).__name__.lower(), first_line(exc))
                self.close()
                pause_s = RETRY_S
        else:
            self.close()
        if pause_s > 0:
            self._woken.wait(pause_s)

    def turn(self) -> float:
        """Works once, with a session; seconds until there may be more to do."""
        if self._conn is None:
            self._conn = patiently(self._open_session, stop=self._stop)
        return 0.0 if self._conn is None else self.work(self._conn)

    def close(self) -> None:
        """Closes the session."""
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()
