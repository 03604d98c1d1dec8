"""The linker: what an ended job means to others. It counts children in their batch, ends a batch with the last of
them, and lets jobs run, or cancels them, whose predecessors have ended.

A job that ends leaves a mark in the transaction that ends it. The linker takes marks, does all that follows from them,
and removes them in one transaction: so nothing is forgotten, whoever dies in between, and nothing is counted twice.
What follows is decided by rows, not by the marks' order: two predecessors that end at the same instant each leave a
mark, and whichever is looked at later finds both ended. A row that somebody holds locked is passed by, its mark put
back.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

from dispatcher.db import Connection
from dispatcher.errand import Errand
from dispatcher.metrics import Metrics
from dispatcher.queries import marks as statements
from dispatcher.queries.marks import Mark

BATCH = 5000  # marks in one transaction
EDGES = 20_000  # and edges seen to in one statement, which must end well within statement_timeout
LATE_S, SHARE = 1.0, 20  # a look behind the marks taken last, past index entries of old ones, takes one part in so many
MANY, PACE_S = 50, 0.02  # while so many come at once, more shall come together: each transaction costs the same
BUSY_PAUSE_S = 0.1
IDLE_S = 60.0  # the stager looks for marks together with due jobs: this is no poll


class Linker(Errand):
    """`released` is told when there may be new work."""

    def __init__(
        self,
        *,
        open_session: Callable[[], Connection],
        leading: Callable[[], bool],
        released: Callable[[], None],
        metrics: Metrics,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(open_session=open_session, leading=leading, metrics=metrics, stop=stop)
        self._released = released
        self._clock = clock
        self._after = 0  # the last mark taken in this burst
        self._late_due = 0.0  # when to look for marks before that

    def work(self, conn: Connection) -> float:
        """Works off one group of marks."""
        with conn.transaction():
            if not statements.take_follow_lock(conn):
                return BUSY_PAUSE_S
            taken = self._take(conn)
            put_back, news = self._work_off(conn, taken) if taken else ([], False)
            if put_back:
                statements.put_marks(conn, put_back)
            if news:
                statements.wake_leaders(conn)
        if news:
            self._released()
        if len(taken) > len(put_back):
            # Go on behind these; what they led to has left marks behind them.
            self._after = max(mark.id for mark in taken)
            if MANY <= len(taken) < BATCH:
                self._stop.wait(PACE_S)
            return 0.0
        if put_back or self._after:
            self._after = 0
            return BUSY_PAUSE_S if put_back else 0.0
        return IDLE_S

    def _take(self, conn: Connection) -> list[Mark]:
        """The next marks. One that was committed late has a number before those, and a burst may not end for hours."""
        started = self._clock()
        if started >= self._late_due:
            self._after = 0
        fresh = self._after == 0
        taken = statements.take_marks(conn, after=self._after, batch=BATCH)
        if fresh:
            ended = self._clock()
            self._late_due = ended + max(LATE_S, SHARE * (ended - started))
        return taken

    def _work_off(self, conn: Connection, taken: list[Mark]) -> tuple[list[Mark], bool]:
        """The marks that are to be put back, and whether anything can run now or has ended."""
        put_back = self._count_children(conn, taken)
        ended = [mark for mark in taken if mark.became is not None]
        looked = [mark.job_id for mark in taken if mark.became is None]
        waiting = statements.resolve_dependencies(
            conn, ended=[mark.job_id for mark in ended], looked=looked, batch=EDGES
        )
        dependents = set(waiting)
        if len(waiting) >= EDGES:  # there may be more; the children of these are counted already
            put_back += [mark._replace(parent_id=None) for mark in taken]
        else:
            dependents.update(looked)
        released, locked = statements.release_dependents(conn, dependents) if dependents else ({}, set())
        # A look at a batch's own job serves one that could not be ended before.
        batches = {mark.parent_id for mark in ended if mark.parent_id is not None}.union(looked)
        closed, held = statements.end_batches(conn, batches) if batches else ({}, set())
        for state in closed.values():
            self._metrics.batches_ended.labels(state).inc()
        put_back += [Mark(0, id, None, None) for id in (*locked, *held)]
        return put_back, bool(released or closed)

    def _count_children(self, conn: Connection, taken: list[Mark]) -> list[Mark]:
        ended: dict[int, Counter[str]] = {}
        for mark in taken:
            if mark.parent_id is not None and mark.became is not None:
                ended.setdefault(mark.parent_id, Counter())[mark.became] += 1
        busy = statements.count_children(conn, ended) if ended else set()
        return [mark for mark in taken if mark.parent_id in busy]
