"""Pulse: which services of this replica go on, as the main thread sees it.

Each service beats after each of its steps, and each time it tries to connect: who waits for a database that is away
does not hang. Time counts only while the looker itself can look, so that a process that was stopped, or a job that
held Python's lock, makes nobody look stuck.
"""

from __future__ import annotations

import time
from collections.abc import Callable

LOOK_S = 1.0  # what one look adds at most; looks come twice a second


class Pulse:
    """Beats come from any thread, each name from one; `look` and what follows from it belong to one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beats: dict[str, int] = {}
        self._seen: dict[str, int] = {}
        self._still_s: dict[str, float] = {}
        self._looked_at = clock()

    def beat(self, name: str) -> None:
        """The service of this name has got on."""
        self._beats[name] = self._beats.get(name, 0) + 1

    def look(self) -> None:
        """Sees who has got on since the last look."""
        now = self._clock()
        passed_s, self._looked_at = min(now - self._looked_at, LOOK_S), now
        for name, count in list(self._beats.items()):
            still_s = self._still_s.get(name, 0.0)
            self._still_s[name] = still_s + passed_s if count == self._seen.get(name) else 0.0
            self._seen[name] = count

    def still_s(self, name: str) -> float:
        """For how many seconds a service has been seen not to get on."""
        return self._still_s.get(name, 0.0)
