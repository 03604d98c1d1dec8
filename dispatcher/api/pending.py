"""How many jobs of a tenant may wait: a bound on what can pile up, kept to about a second's worth of requests."""

from __future__ import annotations

import time
from collections.abc import Callable

from dispatcher.api.database import Database
from dispatcher.api.problems import ApiError
from dispatcher.queries.serving import count_pending

COUNTED_FOR_S = 1.0
KEPT = 10_000


class PendingLimit:
    """Counts the pending jobs of a tenant once a second at most, and what comes in between by itself."""

    def __init__(self, db: Database, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._db = db
        self._most = most
        self._clock = clock
        self._room: dict[str, tuple[float, int]] = {}

    async def take(self, tenant: str, jobs: int) -> None:
        """Makes room for so many jobs; raises ApiError, 429, where there is none. 0 is no limit."""
        if not self._most:
            return
        until, room = self._room.get(tenant, (0.0, 0))
        if until <= self._clock():
            counted = await self._db.run(count_pending(tenant, self._most + 1))
            if len(self._room) >= KEPT:
                self._room.clear()
            until, room = self._clock() + COUNTED_FOR_S, self._most - counted
        if room < jobs:
            self._room[tenant] = (until, room)
            of_whom = f"of the tenant {tenant!r}" if tenant else "without a tenant"
            raise ApiError(
                429,
                f"there is no room for {jobs} more pending jobs {of_whom}: {self._most} may wait",
                {"Retry-After": "1"},
            )
        self._room[tenant] = (until, room - jobs)
