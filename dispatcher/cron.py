"""Cron expressions with a time zone: when they are due, and what to do about due times that were missed. No I/O.

Five fields as Debian's cron reads them (cronsim). Across daylight saving: a schedule at a fixed hour runs once a day,
in the hour that is skipped as soon as the clock has jumped over it, in the hour that comes twice the first time; one
with a star for the minute or the hour goes by real time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from dispatcher.errors import InvalidSchedule

POLICIES = ("skip", "one", "all")
LONGEST = 1000  # characters of an expression
TOLERANCE = timedelta(minutes=1)  # `skip` leaves out what is due for longer
MOST_AT_ONCE = 500  # jobs in one transaction when all are caught up
SECOND = timedelta(seconds=1)
NEAR = timedelta(days=2)  # more than any shift of a clock
_LONG_STEP = re.compile(r"/[0-9]{5}")  # these two CronSim lets pass, and PostgreSQL's own check does not
_LAST_BY_STEPS = re.compile(r"LW?/", re.IGNORECASE)
LOOK_BACK = (timedelta(minutes=5), timedelta(hours=5), timedelta(days=5), timedelta(days=70), timedelta(days=800))


@dataclass(frozen=True, slots=True)
class Cron:
    """A checked expression."""

    expression: str
    zone: ZoneInfo

    @classmethod
    def parse(cls, expression: str, zone: str) -> Cron:
        """Raises InvalidSchedule, in one line, for what is no cron expression, no zone, or never due."""
        try:
            place = ZoneInfo(zone)
        except (ValueError, OSError, KeyError, TypeError):
            raise InvalidSchedule(
                f"there is no time zone {zone!r:.100}: give a name such as Europe/Berlin or UTC"
            ) from None
        if zone in ("localtime", "posixrules"):
            raise InvalidSchedule(
                f"the time zone {zone!r} differs from host to host: give a name such as Europe/Berlin"
            )
        if len(str(expression)) > LONGEST or len(str(expression).split()) != 5:
            raise InvalidSchedule(
                "a cron expression has five fields: minute, hour, day of the month, month, day of the week;"
                f" it is {expression!r:.100}"
            )
        if _LONG_STEP.search(expression) or _LAST_BY_STEPS.search(expression.split()[2]):
            raise InvalidSchedule(
                f"the cron expression {expression!r:.100} is wrong: a step has up to 4 digits, and none goes with L"
            )
        cron = cls(expression, place)
        cron.after(datetime(2000, 1, 1, tzinfo=UTC))
        return cron

    def after(self, moment: datetime) -> datetime:
        """The first due time behind `moment`, in UTC. Raises InvalidSchedule."""
        return next(self.times(moment))

    def times(self, moment: datetime) -> Iterator[datetime]:
        """The due times behind `moment`, in UTC, each later than the one before. Raises InvalidSchedule."""
        try:
            if self._by_real_time():
                yield from self._times_by_real_time(moment)
            else:  # an hour that comes twice begins again
                yield from (due for due in self._simulate(moment, self.zone) if due > moment)
        except (CronSimError, OverflowError) as exc:
            raise InvalidSchedule(f"the cron expression {self.expression!r:.100} is wrong: {exc}") from None
        raise InvalidSchedule(f"the cron expression {self.expression!r:.100} is never due")

    def last(self, due: datetime, now: datetime) -> datetime:
        """The latest due time up to `now`, `due` being an earlier one, without going through all between them."""
        for back in LOOK_BACK:
            if now - back <= due:
                break
            found = self._last_in(now - back, now)
            if found is not None:
                return found
        return self._last_in(due, now) or due

    def _times_by_real_time(self, moment: datetime) -> Iterator[datetime]:
        """The due times behind `moment`, between two shifts of the clock at a time.

        CronSim, left to itself, goes from hour to hour, past what is due after a shift by half an hour, and begins a
        day at midnight, also where there is none.
        """
        offset = self._offset(moment)
        while True:
            for due in self._simulate(moment, timezone(offset)):
                near = min(due, moment + NEAR)
                if self._offset(near) != offset:
                    shift = self._first_shift(moment, near, offset)
                    moment, offset = shift - SECOND, self._offset(shift)
                    break
                if due - moment > 2 * NEAR:  # at another offset nothing is due in between either, but near its ends
                    moment = due - NEAR
                    offset = self._offset(moment)
                    break
                moment = due
                yield due
            else:
                return

    def _first_shift(self, before: datetime, after: datetime, offset: timedelta) -> datetime:
        """The second at which the clock's offset, `offset` right behind `before`, has changed by `after`."""
        while after - before > SECOND:
            middle = before + (after - before) / 2
            before, after = (middle, after) if self._offset(middle) == offset else (before, middle)
        return after.replace(microsecond=0)

    def _simulate(self, moment: datetime, zone: tzinfo) -> Iterator[datetime]:
        return (due.astimezone(UTC) for due in CronSim(self.expression, moment.astimezone(zone)))

    def _offset(self, moment: datetime) -> timedelta:
        return moment.astimezone(self.zone).utcoffset() or timedelta()

    def _by_real_time(self) -> bool:
        return any(field.startswith("*") for field in self.expression.split()[:2])

    def _last_in(self, after: datetime, now: datetime) -> datetime | None:
        found = None
        for one in self.times(after):
            if one > now:
                return found
            found = one
        return found


@dataclass(frozen=True, slots=True)
class Firing:
    """The due times for which there are to be jobs, and the next one."""

    fires: list[datetime]
    next_at: datetime


def catch_up(cron: Cron, policy: str, due: datetime, now: datetime) -> Firing:
    """What to do at `now` about a schedule that is due since `due`.

    `skip`: nothing about what is due for more than a minute; `one`: one job, for the latest; `all`: one job for each,
    a bounded number at once: then the next one is due already.
    """
    if policy == "all":
        fires = [due]
        for one in cron.times(due):
            if one > now or len(fires) >= MOST_AT_ONCE:
                return Firing(fires, one)
            fires.append(one)
    last = cron.last(due, now)
    fires = [] if policy == "skip" and now - last > TOLERANCE else [last]
    return Firing(fires, cron.after(max(last, now)))
