"""Statistics of types: how many jobs ended and how, how long they waited and ran."""

from __future__ import annotations

from dispatcher.front.base import AsyncFront, Front
from dispatcher.queries.stats import TypeStats, read_stats


class StatsFront(Front):
    """The blocking part."""

    def stats(self, tenant: str | None = None) -> list[TypeStats]:
        """What the replicas settled within the last minute, hour and day: of each type, or of one tenant's jobs of it.

        By name, without types of which nothing was settled for a day. Some five seconds late, and cheap however many
        jobs there are: no job is looked at. Batches are not counted, nor what was canceled before it ran. Raises
        InvalidOption.
        """
        return self._do(read_stats(tenant))


class AsyncStatsFront(AsyncFront):
    """The async part."""

    async def stats(self, tenant: str | None = None) -> list[TypeStats]:
        """As Client.stats."""
        return await self._do(read_stats(tenant))
