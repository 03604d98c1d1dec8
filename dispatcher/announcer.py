"""Telling whoever watches jobs which of them have changed: claimed, put forward, ended or put back.

NOTIFY takes a lock over the whole cluster, so nothing is told unless somebody has asked for it of late, and nothing by
enqueuers. Who watches asks again every 10 s, and looks at the rows once a second anyway: being told only makes that
prompt. So whatever is in the way of telling, it is left undone, and nobody else is any the worse for it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence

import psycopg

from dispatcher.db import Connection
from dispatcher.metrics import Metrics
from dispatcher.queries.outcomes import tell_events
from dispatcher.trouble import Trouble

log = logging.getLogger("dispatcher.announcer")

WATCHED_FOR_S = 30.0  # two of the questions, which come every 10 s, may be lost
MAX_IDS = 2000  # past that a look at everything watched costs whoever watches less than reading them
MAX_PAYLOAD = 7900  # bytes; PostgreSQL takes fewer than 8000
EVERYTHING = "*"


class Announcer:
    """Tells of jobs that have changed while somebody watches. Any thread."""

    def __init__(self, *, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._trouble = Trouble("telling who watches of jobs", log=log, metrics=metrics, clock=clock)
        self._clock = clock
        self._until: float | None = None

    def heard(self) -> None:
        """Somebody watches."""
        self._until = self._clock() + WATCHED_FOR_S

    @property
    def wanted(self) -> bool:
        """True if somebody has watched of late."""
        until = self._until
        return until is not None and self._clock() < until

    def tell(self, conn: Connection, ids: Iterable[int]) -> None:
        """Tells of these jobs, if anybody watches; else it does not even look at them. Never raises psycopg.Error.

        For what the caller did before stands: it must not do that again since its watchers could not be told. If it is
        the session that is lost, the caller's next statement says so.
        """
        if not self.wanted:
            return
        try:
            if texts := payloads(list(ids)):
                tell_events(conn, texts)
        except psycopg.Error as exc:
            # A full queue, or a long wait for the lock: silence until somebody asks again, or each group would wait.
            self._until = None
            self._trouble.note(exc, kept=True)


def payloads(ids: Sequence[int]) -> list[str]:
    """What to send so that these jobs are looked at, each text short enough for a notification."""
    if len(ids) > MAX_IDS:
        return [EVERYTHING]
    size = MAX_PAYLOAD // (len(str(max(ids, default=0))) + 1)
    return [",".join(map(str, ids[at : at + size])) for at in range(0, len(ids), size)]
