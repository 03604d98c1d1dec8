"""The listener: one session that receives notifications, and proves again and again that it would.

A half-open connection looks alive and delivers nothing. So in silence it notifies itself and expects to hear it;
without an answer it reconnects. After each reconnect everybody looks for what may have been missed.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
import weakref
from collections.abc import Callable

import psycopg
from psycopg import sql

from dispatcher.db import Connection
from dispatcher.errors import DatabaseUnavailable
from dispatcher.metrics import Metrics
from dispatcher.own_file import OwnFile
from dispatcher.queries.replicas import notify
from dispatcher.trouble import LONGEST_PAUSE_S, Trouble

log = logging.getLogger("dispatcher.listener")

PROBE = "probe"


class Listener:
    """Listens on the lease's channel, the replica's own and that of the fleet; hands (channel, payload) to `heard`."""

    def __init__(
        self,
        *,
        open_session: Callable[[], Connection],
        channels: tuple[str, str, str],
        heard: Callable[[str, str], None],
        connected: Callable[[], None],
        metrics: Metrics,
        stop: threading.Event,
        probe_every_s: float = 10.0,
        answer_within_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_session = open_session
        self._channels = channels
        self._heard = heard
        self._connected = connected
        self._metrics = metrics
        self._trouble = Trouble("the listener's session", log=log, metrics=metrics, clock=clock)
        self._stop = stop
        self._probe_every_s = probe_every_s
        self._answer_within_s = answer_within_s
        self._clock = clock
        self._conn: Connection | None = None
        self._heard_at = 0.0
        self._asked_at: float | None = None
        self._pause_s = 0.0
        self._wakes, self._waker = os.pipe()
        self._pipe = OwnFile(self._wakes)
        weakref.finalize(self, _close, self._wakes, self._waker)

    def wake(self) -> None:
        """Lets every wait from now on return at once: it is to stop. Any thread."""
        os.write(self._waker, b"x")

    def step(self) -> None:
        """Connects if need be, else waits for notifications, at most about a second."""
        try:
            if self._conn is None:
                self._connect()
                return
            self._receive(self._conn)
            self._prove(self._conn)
        except (psycopg.Error, DatabaseUnavailable, OSError) as exc:
            self.close()
            self._pause_s = self._trouble.note(exc)
        else:
            self._trouble.over(after_s=LONGEST_PAUSE_S)  # one that is ended again and again is not opened in haste

    def close(self) -> None:
        """Closes the session."""
        self._metrics.listener.set(0)
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()

    def _connect(self) -> None:
        self._stop.wait(self._pause_s)
        conn = self._open_session()
        self._conn = conn
        for channel in self._channels:
            conn.execute(sql.SQL("listen {}").format(sql.Identifier(channel)), prepare=False)
        self._heard_at, self._asked_at = self._clock(), None
        self._metrics.listener.set(1)
        self._connected()

    def _receive(self, conn: Connection) -> None:
        self._pipe.check()  # poll would say at once, and for ever, that there is no such file
        poll = select.poll()  # select() fails on file numbers from 1024 on
        poll.register(conn, select.POLLIN)
        poll.register(self._wakes, select.POLLIN)
        poll.poll(1000)
        for notification in conn.notifies(timeout=0):
            self._heard_at, self._asked_at = self._clock(), None
            if notification.payload != PROBE:
                try:
                    self._heard(notification.channel, notification.payload)
                except Exception:
                    log.exception("a notification could not be handled")

    def _prove(self, conn: Connection) -> None:
        now = self._clock()
        if self._asked_at is not None:
            if now - self._asked_at > self._answer_within_s:
                raise DatabaseUnavailable("a notification to itself did not arrive")
        elif now - self._heard_at > self._probe_every_s:
            self._asked_at = now
            notify(conn, self._channels[1], PROBE)


def _close(*files: int) -> None:
    for file in files:
        os.close(file)
