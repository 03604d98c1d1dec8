"""A dispatch in its term, with a pool that only collects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from dispatcher.db import Connection
from dispatcher.executor import Executor, Registry
from dispatcher.inflight import Execution, InFlight
from dispatcher.metrics import Metrics
from dispatcher.pool import Pools
from dispatcher.services.dispatch import Dispatch
from tests.db.running import OWNER, TERM, nothing

A = Executor("a", nothing, "tests.a")
B = Executor("b", nothing, "tests.b")
LIMITED = Executor("limited", nothing, "tests.limited", limit=3)


class Collector:
    """Where claimed jobs go."""

    remote = False
    dead = False

    def __init__(self, inflight: InFlight, size: int = 100, name: str = "thread") -> None:
        self.name = name
        self.size = size
        self.taken: list[Execution] = []
        self.waiting = 0
        self.stuck = False
        self._executing = inflight.executing_in(name)

    @property
    def executing(self) -> int:
        return len(self._executing)

    def stack(self, execution: Execution) -> str | None:
        return None

    def lost(self, stuck: int) -> int:
        return stuck

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def rate(self) -> float:
        return 0.0

    def nudge(self) -> None:
        pass

    def stalled(self) -> bool:
        return self.stuck

    def execute(self) -> None:
        """All that was taken executes from now on."""
        self._executing.update((each.key, each) for each in self.taken)

    def submit(self, executions: list[Execution]) -> None:
        self.taken += executions

    def take_waiting(self) -> list[Execution]:
        return self.taken if self.stuck else []


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
        self.inflight = InFlight()
        self.pool = Collector(self.inflight, threads)
        registry = Registry(executors)
        self.pools = Pools([self.pool], registry)
        self.now = 1000.0
        self.armed: list[list[int]] = []
        """What had been handed over by each arming of the fence."""
        self.metrics = Metrics()
        self.dispatch = Dispatch(
            replica=owner,
            lease_number=1,
            registry=registry,
            inflight=self.inflight,
            pools=self.pools,
            before_run=lambda: self.armed.append([each.claimed.id for each in self.pool.taken]),
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
        self.inflight.executing_in("thread").update((each.key, each) for each in taken)
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
            self.inflight.executing_in("thread").pop(taken.key, None)
