"""Control of types at run time: pause, resume, limits and rates."""

from __future__ import annotations

from enum import Enum
from typing import Any

import psycopg

from dispatcher.front.base import AsyncFront, Front
from dispatcher.operations import checked_type
from dispatcher.queries import fleet


class Unchanged(Enum):
    """Stands for what a call leaves as it is, since None means: what the code says."""

    UNCHANGED = "unchanged"


UNCHANGED = Unchanged.UNCHANGED


class ControlFront(Front):
    """The blocking part."""

    def pause(self, type: str, *, conn: psycopg.Connection[Any] | None = None) -> bool:
        """Lets no job of the type start any more; those that run go on. False if it was paused already.

        In effect as soon as the leader has heard of it, and kept until resume. Raises UnknownType.
        """
        return self._do(fleet.pause_type(checked_type(type)), conn)

    def resume(self, type: str, *, conn: psycopg.Connection[Any] | None = None) -> bool:
        """Lets jobs of the type start again. False if it was not paused. Raises UnknownType."""
        return self._do(fleet.resume_type(checked_type(type)), conn)

    def set_limit(
        self,
        type: str,
        *,
        limit: int | Unchanged | None = UNCHANGED,
        tenant_limit: int | Unchanged | None = UNCHANGED,
        rate: float | str | Unchanged | None = UNCHANGED,
        burst: int | Unchanged | None = UNCHANGED,
        tenant: str | None = None,
        conn: psycopg.Connection[Any] | None = None,
    ) -> None:
        """Changes what is given; it goes before what the code and the settings say, and None gives way to them again.

        `limit`: jobs that run at once; `tenant_limit`: of each tenant; `rate`: starts a second, or "100/min"; `burst`:
        starts at once. With `tenant`, `limit` is that tenant's own. Raises UnknownType, InvalidOption.
        """
        given = {"limit": limit, "tenant_limit": tenant_limit, "rate": rate, "burst": burst}
        self._do(fleet.set_limit(checked_type(type), _changes(given), tenant), conn)


class AsyncControlFront(AsyncFront):
    """The async part."""

    async def pause(self, type: str, *, conn: psycopg.AsyncConnection[Any] | None = None) -> bool:
        """As Client.pause."""
        return await self._do(fleet.pause_type(checked_type(type)), conn)

    async def resume(self, type: str, *, conn: psycopg.AsyncConnection[Any] | None = None) -> bool:
        """As Client.resume."""
        return await self._do(fleet.resume_type(checked_type(type)), conn)

    async def set_limit(
        self,
        type: str,
        *,
        limit: int | Unchanged | None = UNCHANGED,
        tenant_limit: int | Unchanged | None = UNCHANGED,
        rate: float | str | Unchanged | None = UNCHANGED,
        burst: int | Unchanged | None = UNCHANGED,
        tenant: str | None = None,
        conn: psycopg.AsyncConnection[Any] | None = None,
    ) -> None:
        """As Client.set_limit."""
        given = {"limit": limit, "tenant_limit": tenant_limit, "rate": rate, "burst": burst}
        await self._do(fleet.set_limit(checked_type(type), _changes(given), tenant), conn)


def _changes(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not UNCHANGED}
