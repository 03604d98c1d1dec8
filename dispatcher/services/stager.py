"""The stager makes due jobs pending. It sleeps until the earliest one is due, or until it is told of an earlier one.

With the same look it sees for the linker whether there are marks: nobody notifies of them while the leader is awake.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from dispatcher.db import Connection
from dispatcher.errand import Errand
from dispatcher.metrics import Metrics
from dispatcher.queries import upkeep

BATCH = 1000
BUSY_LOOK_S = 0.1  # while the leader is awake nobody notifies: look often


class Stager(Errand):
    """`promoted` is told of new pending jobs, `marked` of marks."""

    def __init__(
        self,
        *,
        open_session: Callable[[], Connection],
        leading: Callable[[], bool],
        awake: Callable[[], bool],
        promoted: Callable[[], None],
        marked: Callable[[], None],
        poll_interval_s: float,
        metrics: Metrics,
        stop: threading.Event,
    ) -> None:
        super().__init__(open_session=open_session, leading=leading, metrics=metrics, stop=stop)
        self._awake = awake
        self._promoted = promoted
        self._marked = marked
        self._poll_interval_s = poll_interval_s

    def work(self, conn: Connection) -> float:
        """Promotes what is due."""
        awake = self._awake()  # before the look: who dozes in between was told of nothing that the look can miss
        due_s, marked = upkeep.next_due(conn)
        if marked:
            self._marked()
        if due_s is not None and due_s <= 0:
            count = upkeep.promote_jobs(conn, BATCH)
            if count:
                self._promoted()
                return 0.0
            return BUSY_LOOK_S  # due, but somebody holds the row locked
        longest = min(self._poll_interval_s, BUSY_LOOK_S) if awake else self._poll_interval_s
        return longest if due_s is None else min(longest, due_s + 0.001)
