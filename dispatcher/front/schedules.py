"""Schedules: jobs by the calendar."""

from __future__ import annotations

from typing import Any, Unpack

import psycopg

from dispatcher.front.base import AsyncFront, Front
from dispatcher.options import Options
from dispatcher.queries import schedules
from dispatcher.queries.schedules import ScheduleInfo


class SchedulesFront(Front):
    """The blocking part."""

    def schedules(self) -> list[ScheduleInfo]:
        """All schedules, by name, with their next and their last due time."""
        return self._do(schedules.list_schedules())

    def add_schedule(
        self,
        name: str,
        cron: str,
        type: str,
        payload: Any = None,
        *,
        zone: str = "UTC",
        catch_up: str = "one",
        conn: psycopg.Connection[Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        """Adds a schedule, or changes the one of this name.

        `cron`: minute, hour, day of the month, month, day of the week, in `zone`. The leader enqueues a job within a
        second of each due time, and at most one for each, whoever leads. `catch_up` says what becomes of due times at
        which nobody led: `skip`, `one` job for all of them, or `all`. With `unique_key` no job is added while the last
        one is unfinished. Raises InvalidSchedule, UnknownType, InvalidPayload, PayloadTooLarge, InvalidOption.
        """
        self._do(self._operations.add_schedule(name, cron, type, payload, zone, catch_up, options), conn)

    def remove_schedule(self, name: str, *, conn: psycopg.Connection[Any] | None = None) -> None:
        """Removes a schedule; its jobs stay. Raises ScheduleNotFound."""
        self._do(schedules.remove_schedule(name), conn)

    def pause_schedule(self, name: str, *, conn: psycopg.Connection[Any] | None = None) -> bool:
        """Fires it no more. False if it was paused already. Raises ScheduleNotFound."""
        return self._do(schedules.pause_schedule(name), conn)

    def resume_schedule(self, name: str, *, conn: psycopg.Connection[Any] | None = None) -> bool:
        """Goes on from now; what was due meanwhile is not caught up. False if it went on. Raises ScheduleNotFound."""
        return self._do(schedules.resume_schedule(name), conn)

    def trigger_schedule(self, name: str, *, conn: psycopg.Connection[Any] | None = None) -> int:
        """Enqueues its job now, paused or not; the job's id. The next due time stays. Raises ScheduleNotFound."""
        return self._do(schedules.trigger_schedule(name), conn)


class AsyncSchedulesFront(AsyncFront):
    """The async part."""

    async def schedules(self) -> list[ScheduleInfo]:
        """As Client.schedules."""
        return await self._do(schedules.list_schedules())

    async def add_schedule(
        self,
        name: str,
        cron: str,
        type: str,
        payload: Any = None,
        *,
        zone: str = "UTC",
        catch_up: str = "one",
        conn: psycopg.AsyncConnection[Any] | None = None,
        **options: Unpack[Options],
    ) -> None:
        """As Client.add_schedule."""
        await self._do(self._operations.add_schedule(name, cron, type, payload, zone, catch_up, options), conn)

    async def remove_schedule(self, name: str, *, conn: psycopg.AsyncConnection[Any] | None = None) -> None:
        """As Client.remove_schedule."""
        await self._do(schedules.remove_schedule(name), conn)

    async def pause_schedule(self, name: str, *, conn: psycopg.AsyncConnection[Any] | None = None) -> bool:
        """As Client.pause_schedule."""
        return await self._do(schedules.pause_schedule(name), conn)

    async def resume_schedule(self, name: str, *, conn: psycopg.AsyncConnection[Any] | None = None) -> bool:
        """As Client.resume_schedule."""
        return await self._do(schedules.resume_schedule(name), conn)

    async def trigger_schedule(self, name: str, *, conn: psycopg.AsyncConnection[Any] | None = None) -> int:
        """As Client.trigger_schedule."""
        return await self._do(schedules.trigger_schedule(name), conn)
