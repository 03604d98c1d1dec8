"""Trouble with the database: counted, said once a minute, and a reason to wait before the next try.

Every service goes by this when a connection or a statement fails. A database that is out of disk, locks or connections
stays so for long, and whoever asks it again at once, or logs each refusal, only adds to the trouble.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable

import psycopg
from psycopg.pq import TransactionStatus

from dispatcher.db import Connection, first_line
from dispatcher.metrics import Metrics

SAY_EVERY_S = 60.0
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0  # what works again is noticed within this
LASTING_S = 5.0  # from here on it is no hiccup: /readyz names it
EXHAUSTED = "53"
"""The SQLSTATEs of a server that is out of disk, memory or room for locks; out of connections only when connecting."""
LOCKED = "55P03"
CANCELED = "57014"


class Sparing:
    """Logs each kind of thing at most once a minute, and then how many it has kept to itself since. Any thread."""

    def __init__(self, log: logging.Logger, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._said: dict[str, tuple[float, int]] = {}  # kind: when, and how many were not said since

    def say(self, kind: str, message: str, *args: object, level: int = logging.WARNING) -> None:
        """Logs it, unless one of this kind was logged within the last minute."""
        now = self._clock()
        at, suppressed = self._said.get(kind, (float("-inf"), 0))
        if now - at < SAY_EVERY_S:
            self._said[kind] = at, suppressed + 1
            return
        self._said[kind] = now, 0
        self._log.log(level, message, *args, extra={"kind": kind} | ({"suppressed": suppressed} if suppressed else {}))


class Trouble:
    """That of one session, which is called `name` in the log."""

    def __init__(
        self,
        name: str,
        *,
        log: logging.Logger,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._name = name
        self._sparing = Sparing(log, clock=clock)
        self._metrics = metrics
        self._clock = clock
        self._chance = chance
        self._pause_s = 0.0
        self._since: float | None = None
        self._latest = ""
        self._latest_at = 0.0

    @property
    def for_s(self) -> float:
        """Seconds since it began; 0 if there is none. Any thread."""
        since = self._since
        return 0.0 if since is None else self._clock() - since

    @property
    def lasting(self) -> str | None:
        """What is wrong, if it has been so for more than a moment. Any thread."""
        return self._latest if self.for_s > LASTING_S else None

    def note(self, exc: BaseException, *, kept: bool = False) -> float:
        """An error, after which the session is lost, or `kept`. Seconds to wait before the next try, more each time."""
        if self._metrics is not None:
            self._metrics.db_errors.inc()
        self._latest, self._latest_at = first_line(exc), self._clock()
        if self._since is None:
            self._since = self._latest_at
        kind = getattr(exc, "sqlstate", None) or type(exc).__name__
        self._sparing.say(kind, "%s %s: %s", self._name, "was refused a statement" if kept else "is lost", self._latest)
        self._pause_s = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2 * self._pause_s))
        return self._pause_s * (0.5 + self._chance() / 2)

    def over(self, *, after_s: float = 0.0) -> None:
        """What was in trouble works; or seems to, and it is over if there was no error for `after_s`."""
        if self._since is not None and self._clock() - self._latest_at >= after_s:
            self._since, self._pause_s = None, 0.0


def refused(conn: Connection | None, exc: BaseException) -> bool:
    """Whether the server was out of something, or a lock was in the way, such as a migration's on a whole table: it did
    nothing of the statement, and the session is as it was.
    """
    return isinstance(exc, psycopg.Error) and (exc.sqlstate or "").startswith((EXHAUSTED, LOCKED)) and _sound(conn)


def undone(conn: Connection | None, exc: BaseException) -> bool:
    """As `refused`, or the statement was canceled, by an administrator or a time-out."""
    return refused(conn, exc) or (isinstance(exc, psycopg.Error) and exc.sqlstate == CANCELED and _sound(conn))


def _sound(conn: Connection | None) -> bool:
    return conn is not None and not conn.closed and conn.info.transaction_status == TransactionStatus.IDLE
