"""Pool: a place where jobs run. The one seam for another engine, which implements it in one file in dispatcher/pools/.

    dispatch ─submit─▶ waiting ─▶ executing ─ended─▶ completer

A pool that is given an execution calls `ended` with it exactly once, with its outcome set, when nothing of that attempt
runs any more, and only then; until `take_waiting` has given it back. Limits, timeouts and cancels are not a pool's
business: it is told of those by the execution's Context.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from dispatcher.executor import Registry
from dispatcher.inflight import Execution, InFlight

STALL_S = 1.0  # waiting longer than this without any start: the queue was filled for a faster pool
SAMPLE_S = 0.02


class Pool(Protocol):
    """What the daemon needs of a place where jobs run."""

    name: str
    """As executors choose it: thread, async, process, dask."""
    size: int
    """How many jobs run here at once."""
    remote: bool
    """True if a job may run on when this process has died, until its fence ends it."""
    dead: bool
    """True once it cannot run anything any more."""

    @property
    def waiting(self) -> int:
        """Jobs that were submitted and have not been started."""

    @property
    def executing(self) -> int:
        """Jobs that were started and have not ended."""

    def rate(self) -> float:
        """Jobs ended a second, of late."""

    def nudge(self) -> None:
        """Sees to it that jobs which wait are started, if there is a place free."""

    def stalled(self) -> bool:
        """True if jobs wait and none has been started for a while."""

    def submit(self, executions: list[Execution]) -> None:
        """Takes jobs to run. Must not block."""

    def take_waiting(self) -> list[Execution]:
        """Takes back all jobs that have not been started."""

    def stack(self, execution: Execution) -> str | None:
        """What an execution is doing right now, for people, where that can be known at once."""

    def lost(self, stuck: int) -> int:
        """How many places are lost, where so many jobs here are past their timeout and nothing ends them."""

    def start(self) -> None:
        """Makes ready what the first job should not wait for. Must not block."""

    def stop(self) -> None:
        """Ends what runs here at once: this process is about to end."""


class Backlog:
    """What a pool's jobs wait in, and how fast the pool is: the half of a Pool that is the same for all."""

    remote = False
    dead = False

    def __init__(
        self,
        *,
        name: str,
        size: int,
        inflight: InFlight,
        ended: Callable[[Execution], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.size = size
        self._ended = ended
        self._clock = clock
        self._waiting: deque[Execution] = deque()
        self._executing = inflight.executing_in(name)
        self._last_start = 0.0
        self._done = 0  # a hint for rate(): two threads may count one job
        self._sample: tuple[float, int, float] = (clock(), 0, 0.0)

    @property
    def waiting(self) -> int:
        """See Pool."""
        return len(self._waiting)

    @property
    def executing(self) -> int:
        """See Pool."""
        return len(self._executing)

    def take_waiting(self) -> list[Execution]:
        """See Pool."""
        taken = []
        while True:
            try:
                taken.append(self._waiting.popleft())
            except IndexError:
                return taken

    def stalled(self) -> bool:
        """See Pool."""
        return self.waiting > 0 and self._clock() - self._last_start > STALL_S

    def rate(self) -> float:
        """Jobs ended a second: over the last instants while busy, at once low after a pause."""
        then, done, rate = self._sample
        now, elapsed = self._clock(), self._clock() - then
        if elapsed >= SAMPLE_S:
            fresh = (self._done - done) / elapsed
            rate = fresh if elapsed > 10 * SAMPLE_S else (rate + fresh) / 2
            self._sample = (now, self._done, rate)
        return rate

    def stack(self, execution: Execution) -> str | None:  # noqa: ARG002
        """See Pool."""
        return None

    def lost(self, stuck: int) -> int:
        """See Pool."""
        return stuck

    def start(self) -> None:
        """See Pool."""

    def stop(self) -> None:
        """See Pool."""

    def _begin(self, execution: Execution) -> None:
        """An execution was taken from `_waiting`: at once, since the fence stands while anything executes."""
        self._executing[execution.key] = execution
        execution.started_at = self._last_start = self._clock()

    def _end(self, execution: Execution) -> None:
        execution.ended_at = self._clock()
        self._done += 1
        del self._executing[execution.key]
        self._ended(execution)


class Pools:
    """The pools of this process, and which type runs in which."""

    def __init__(self, pools: Iterable[Pool], registry: Registry) -> None:
        self._by_name = {pool.name: pool for pool in pools}
        self._types = {name: frozenset(spec.type for spec in registry if spec.pool == name) for name in self._by_name}

    def __iter__(self) -> Iterator[Pool]:
        return iter(self._by_name.values())

    def types(self, pool: Pool) -> frozenset[str]:
        """The types that run in a pool."""
        return self._types[pool.name]

    def serving(self, type: str) -> Pool | None:
        """The pool in which a type runs; None if it has no executor here."""
        return next((pool for pool in self if type in self._types[pool.name]), None)

    @property
    def waiting(self) -> int:
        """Jobs that no pool has started yet."""
        return sum(pool.waiting for pool in self)

    def of(self, execution: Execution) -> Pool:
        """The pool in which an execution runs."""
        return self._by_name[execution.executor.pool]

    def submit(self, executions: Sequence[Execution]) -> None:
        """Hands each to its pool."""
        by_pool: dict[str, list[Execution]] = {}
        for execution in executions:
            by_pool.setdefault(execution.executor.pool, []).append(execution)
        for name, own in by_pool.items():
            self._by_name[name].submit(own)

    def take_waiting(self) -> list[Execution]:
        """Takes back all jobs that have not been started."""
        return [execution for pool in self for execution in pool.take_waiting()]

    def nudge(self) -> None:
        """Sees to it that jobs which wait are started, where a place is free."""
        for pool in self:
            pool.nudge()

    def stalled(self) -> bool:
        """True if jobs wait in a pool that has started none for a while."""
        return any(pool.stalled() for pool in self)

    def lost(self, stuck: Iterable[Execution]) -> int:
        """How many places are lost to these jobs, which are past their timeout."""
        by_pool = Counter(execution.executor.pool for execution in stuck)
        return sum(self._by_name[name].lost(count) for name, count in by_pool.items())

    def stack(self, execution: Execution) -> str | None:
        """What an execution is doing right now, for people."""
        return self.of(execution).stack(execution)
