"""A dispatch in its term, with a pool that only collects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from dispatcher.db import Connection
from dispatcher.executor import Executor, Registry
from dispatcher.inflight import Execution, InFlight
from dispatcher.metrics import Metrics
from dispatcher.services.dispatch import Dispatch
from tests.db.running import OWNER, TERM, nothing

A = Executor("a", nothing, "tests.a")
B = Executor("b", nothing, "tests.b")
LIMITED = Executor("limited", nothing, "tests.limited", limit=3)


class Collector:
    """Where claimed jobs go."""

    def __init__(self, threads: int = 100) -> None:
        self.threads = threads
        self.taken: list[Execution] = []
        self.waiting = 0

    def rate(self) -> float:
        return 0.0

    def nudge(self) -> None:
        pass

    def stalled(self) -> bool:
        return False

    def submit(self, executions: list[Execution]) -> None:
        self.taken += executions

    def take_waiting(self) -> list[Execution]:
        return []


class Leading:
    """A dispatch in its term, with a clock that a test turns; what it claims executes at once, until a test ends it."""

    def __init__(
        self,
        conn: Connection,
        *,
        threads: int = 100,
        owner: int = OWNER,
        aging_s: float | None = None,
        executors: Sequence[Executor] = (A, B, LIMITED),
        changed: Callable[[Connection, Iterable[int]], None] = lambda _conn, _ids: None,
    ) -> None:
        self.conn = conn
        self.pool = Collector(threads)
        self.inflight = InFlight()
        self.now = 1000.0
        self.metrics = Metrics()
        self.dispatch = Dispatch(
            replica=owner,
            lease_number=1,
            registry=Registry(executors),
            inflight=self.inflight,
            pool=self.pool,
            before_run=lambda: None,
            metrics=self.metrics,
            changed=changed,
            aging_s=aging_s,
            clock=lambda: self.now,
        )
        self.dispatch.begin(conn, TERM)

    def round(self) -> list[int]:
        """The ids that one round claims."""
        before = len(self.pool.taken)
        claimed = self.dispatch.step(self.conn)
        taken = self.pool.taken[before:]
        assert len(taken) == claimed
        self.inflight.executing.update((each.key, each) for each in taken)
        return [each.claimed.id for each in taken]

    def rounds(self) -> list[int]:
        """The ids that it claims until it has looked everywhere in vain, as the heart does it."""
        ids: list[int] = []
        for _ in range(100):
            if claimed := self.round():
                ids += claimed
            elif self.dispatch.room() <= 0 or self.dispatch.looked_everywhere:
                return ids
            else:
                self.dispatch.read_again()
        raise AssertionError("it does not come to rest")

    def end(self, ids: list[int]) -> None:
        """These are settled."""
        self.conn.execute(
            "update dispatcher.job set state = 'succeeded', finished_at = now() where id = any(%s)", (ids,)
        )
        gone = [taken for taken in self.pool.taken if taken.claimed.id in ids]
        self.inflight.remove(gone)
        for taken in gone:
            self.inflight.executing.pop(taken.key, None)
