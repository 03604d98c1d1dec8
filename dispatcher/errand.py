"""Errand: what the leader does beside its claims, on a session of its own, when woken or when its time has come."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import psycopg

from dispatcher.db import Connection, patiently
from dispatcher.metrics import Metrics
from dispatcher.trouble import Trouble, undone

STANDBY_S = 60.0
SOON_S = 0.003
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
        self._trouble = Trouble(f"the {type(self).__name__.lower()}'s session", log=_log, metrics=metrics)
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
                kept = undone(self._conn, exc)
                if not kept:
                    self.close()
                self._stop.wait(self._trouble.note(exc, kept=kept))  # whoever wakes us meanwhile makes no haste
                return
        else:
            self.close()
        if pause_s > 0:
            self._woken.wait(pause_s)

    def turn(self) -> float:
        """Works once, with a session; seconds until there may be more to do."""
        if self._conn is None:
            self._conn = patiently(self._open_session, stop=self._stop, failed=self._trouble.note)
        if self._conn is None:
            return 0.0
        pause_s = self.work(self._conn)
        self._trouble.over()
        return pause_s

    def close(self) -> None:
        """Closes the session."""
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()
