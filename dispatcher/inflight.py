"""What this replica has claimed and not yet settled: shared by the services, guarded by one lock taken once a batch.

It serves this process only. Limits are counted from it only for jobs that this process claimed itself in the session that
still holds the lease; whatever happened before is counted from the rows (queries/count_running.sql).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from dispatcher.context import Context
from dispatcher.executor import Executor
from dispatcher.outcome import Outcome

if TYPE_CHECKING:
    from dispatcher.queries.claims import Claimed


class Execution:
    """One attempt of one job in this process. Times are monotonic seconds."""

    __slots__ = ("claimed", "claimed_at", "ctx", "ended_at", "executor", "outcome", "resent", "stack", "started_at", "thread")

    def __init__(self, claimed: Claimed, executor: Executor, claimed_at: float) -> None:
        self.claimed = claimed
        self.executor = executor
        self.claimed_at = claimed_at
        self.ctx: Context | None = None  # set when a thread starts it
        self.started_at = 0.0
        self.ended_at = 0.0
        self.thread = 0
        self.stack: str | None = None  # of its thread, taken when it outlived its timeout
        self.outcome: Outcome | None = None  # set when its thread is back
        self.resent = False  # an earlier answer was lost: not finding the row proves nothing

    @property
    def key(self) -> tuple[int, int]:
        """(id, attempt)"""
        return self.claimed.id, self.claimed.attempt


class InFlight:
    """The executions between claim and settled outcome."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: dict[tuple[int, int], Execution] = {}
        self._by_type: Counter[str] = Counter()
        self._by_claim: Counter[int] = Counter()
        self.executing: dict[int, Execution] = {}
        """Executions whose thread is not back, by job id; written by the worker threads, one key each."""

    def add(self, executions: Iterable[Execution]) -> None:
        """Takes freshly claimed executions in."""
        with self._lock:
            for execution in executions:
                claimed = execution.claimed
                self._all[claimed.id, claimed.attempt] = execution
                self._by_type[claimed.type] += 1
                self._by_claim[claimed.claim] += 1

    def remove(self, executions: Iterable[Execution]) -> list[int]:
        """Lets settled executions go; returns the claims of which none is left."""
        emptied = []
        with self._lock:
            for execution in executions:
                claimed = execution.claimed
                if self._all.pop((claimed.id, claimed.attempt), None) is None:
                    continue
                self._by_type[claimed.type] -= 1
                self._by_claim[claimed.claim] -= 1
                if not self._by_claim[claimed.claim]:
                    del self._by_claim[claimed.claim]
                    emptied.append(claimed.claim)
        return emptied

    def running(self, type: str) -> int:
        """How many of a type are in flight."""
        return self._by_type[type]

    def counts(self) -> dict[str, int]:
        """How many are in flight, by type."""
        with self._lock:
            return {type: n for type, n in self._by_type.items() if n}

    def __contains__(self, key: tuple[int, int]) -> bool:
        return key in self._all

    def __len__(self) -> int:
        return len(self._all)

    def snapshot(self) -> list[Execution]:
        """All executions at this moment."""
        with self._lock:
            return list(self._all.values())
