"""The scheduler enqueues jobs by the calendar. It sleeps until the next due time, or until it is told of a change.

A due time is fired in one statement that enqueues its job and moves the schedule on, guarded by the due time itself: of
two leaders at that very second, the second finds another one. Whether it is due is decided by the database's clock.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import psycopg

from dispatcher.cron import Cron, catch_up
from dispatcher.db import Connection, first_line
from dispatcher.errand import Errand
from dispatcher.errors import BY_SQLSTATE, InvalidSchedule
from dispatcher.metrics import Metrics
from dispatcher.queries import schedules
from dispatcher.queries.marks import wake_leaders
from dispatcher.queries.schedules import Due

log = logging.getLogger("dispatcher.scheduler")

BATCH = 100
LONGEST_S = 15.0  # without a look, should a notification have been lost
BUSY_PAUSE_S = 0.1
BEHIND_S = 60.0  # the least time between two due times of one schedule
_OF_THE_JOB = (psycopg.DataError, psycopg.IntegrityError, psycopg.errors.RaiseException)  # a trigger of somebody, say
COUNT_STOPPED_EVERY = 4  # looks


class Scheduler(Errand):
    """`fired` is told when there are new jobs."""

    def __init__(
        self,
        *,
        open_session: Callable[[], Connection],
        leading: Callable[[], bool],
        fired: Callable[[], None],
        metrics: Metrics,
        stop: threading.Event,
    ) -> None:
        super().__init__(open_session=open_session, leading=leading, metrics=metrics, stop=stop)
        self._fired = fired
        self._looks = 0
        self._passed: list[str] = []  # what could not be done now: looks go past it until all the rest is done
        self._behind: set[str] = set()  # what has much to catch up: a bit of it when none of the others is due
        self._put_off: psycopg.Error | None = None

    def work(self, conn: Connection) -> float:
        """Fires what is due."""
        if self._looks % COUNT_STOPPED_EVERY == 0:
            self._metrics.stopped_schedules.set(schedules.count_stopped(conn))
        self._looks += 1
        found = schedules.list_due(conn, BATCH, besides=[*self._passed, *self._behind])
        pending = [due for due in found if due.in_s is None or due.in_s <= 0]
        self._behind.update(due.name for due in pending if _is_behind(due))
        self._passed += [due.name for due in pending if not _is_behind(due) and not self._handle(conn, due)]
        if pending:
            return 0.0
        if self._behind:
            self._catch_up_one(conn)
            return 0.0
        passed, self._passed = self._passed, []
        put_off, self._put_off = self._put_off, None
        if put_off is not None:
            raise put_off
        longest = BUSY_PAUSE_S if passed else LONGEST_S  # somebody holds their rows locked
        return min((longest, *(due.in_s + 0.001 for due in found if due.in_s is not None)))

    def _catch_up_one(self, conn: Connection) -> None:
        """The one that is behind the most."""
        for due in schedules.list_due(conn, 1, besides=self._passed):
            if due.in_s is None or due.in_s <= 0:
                self._behind.discard(due.name)  # the next look finds it again if it is not done
                if self._handle(conn, due):
                    self._passed = []  # to be tried again between two bits: catching up may take long
                else:
                    self._passed.append(due.name)
                return
        self._behind.clear()  # paused or removed

    def _handle(self, conn: Connection, due: Due) -> bool:
        """Works out the next due time, and fires those that are due; False where it cannot be done now."""
        try:
            cron = Cron.parse(due.cron, due.zone)
            if due.next_at is None:
                return schedules.plan_schedule(conn, due, cron.after(due.since))
            firing = catch_up(cron, due.catch_up, due.next_at, due.now)
            fired = schedules.fire_schedule(conn, due, firing.fires, firing.next_at)
        except InvalidSchedule as exc:
            return self._stop_schedule(conn, due, str(exc))
        except psycopg.errors.LockNotAvailable:
            return False  # such as an open transaction with the job's unique key: the others must not wait for it
        except psycopg.Error as exc:
            if exc.sqlstate not in BY_SQLSTATE and not isinstance(exc, _OF_THE_JOB):
                if conn.closed:
                    raise
                self._put_off = exc  # it may be of this one alone, such as a table that somebody's trigger lacks
                return False
            return self._stop_schedule(conn, due, first_line(exc))  # such as a type that is gone
        if fired:
            self._metrics.schedules_fired.labels(due.type).inc(fired)
            wake_leaders(conn)
            self._fired()
        return fired is not None

    def _stop_schedule(self, conn: Connection, due: Due, reason: str) -> bool:
        if not schedules.stop_schedule(conn, due, reason):
            return False
        self._looks = 0
        log.error("a schedule cannot go on: %s", reason, extra={"schedule": due.name})
        return True


def _is_behind(due: Due) -> bool:
    """Whether many jobs may be due for it."""
    return due.catch_up == "all" and due.in_s is not None and due.in_s < -BEHIND_S
