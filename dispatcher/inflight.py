"""What this replica has claimed and not yet settled: shared by the services, guarded by one lock taken once a batch.

It serves this process only. Limits are counted from it only for jobs that this process claimed itself in the session
that still holds the lease; whatever happened before is counted from the rows (queries/count_running.sql).
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import ItemsView, Iterable, Sequence
from typing import TYPE_CHECKING

from dispatcher.context import Context
from dispatcher.executor import Executor
from dispatcher.outcome import Outcome

if TYPE_CHECKING:
    from dispatcher.queries.claims import Claimed


class Execution:
    """One attempt of one job in this process. Times are monotonic seconds."""

    __slots__ = (
        "busy",
        "cancel_requested",
        "claimed",
        "claimed_at",
        "ctx",
        "ended_at",
        "executor",
        "key",
        "lost",
        "outcome",
        "resent",
        "stack",
        "started_at",
        "thread",
    )

    def __init__(self, claimed: Claimed, executor: Executor, claimed_at: float) -> None:
        self.claimed = claimed
        self.cancel_requested = False
        self.lost = False  # the database does not know that it is ours: it is to stop, and its outcome finds no row
        self.busy = False  # its row was found locked by somebody
        self.key = (claimed.id, claimed.attempt)
        self.executor = executor
        self.claimed_at = claimed_at
        self.ctx: Context | None = None  # set when a thread starts it
        self.started_at = 0.0
        self.ended_at = 0.0
        self.thread = 0
        self.stack: str | None = None  # of its thread, taken when it outlived its timeout
        self.outcome: Outcome | None = None  # set when its thread is back
        self.resent = False  # an earlier answer was lost: not finding the row proves nothing


class InFlight:
    """The executions between claim and settled outcome."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: dict[tuple[int, int], Execution] = {}
        self._by_type: Counter[str] = Counter()
        self._by_tenant: Counter[tuple[str, str]] = Counter()
        self._by_claim: Counter[int] = Counter()
        self._empty_claims: list[int] = []
        self.doubted_claims: set[int] = set()
        """Claims of which a job was let go although its row may still say that it runs here."""
        self._executing: dict[str, dict[tuple[int, int], Execution]] = {}

    def add(self, executions: Sequence[Execution]) -> None:
        """Takes freshly claimed executions in."""
        with self._lock:
            self._all.update((execution.key, execution) for execution in executions)
            for (type, tenant, claim), count in _tally(executions):
                self._by_type[type] += count
                self._by_tenant[type, tenant] += count
                self._by_claim[claim] += count

    def remove(self, executions: Iterable[Execution], *, doubted: bool = False) -> None:
        """Lets executions go whose rows are no longer running by us; `doubted` where that is not certain."""
        with self._lock:
            known = [execution for execution in executions if self._all.pop(execution.key, None) is not None]
            for (type, tenant, claim), count in _tally(known):
                self._by_type[type] -= count
                self._by_tenant[type, tenant] -= count
                if not self._by_tenant[type, tenant]:
                    del self._by_tenant[type, tenant]  # there may be very many in the course of time
                self._by_claim[claim] -= count
                if doubted:
                    self.doubted_claims.add(claim)
                if not self._by_claim[claim]:
                    del self._by_claim[claim]
                    self._empty_claims.append(claim)

    def executing_in(self, pool: str) -> dict[tuple[int, int], Execution]:
        """The executions that a pool has started and that have not ended; the pool writes it, one key at a time.

        By attempt: a job that was taken away may be given to this very process again while the thread of the older
        attempt is not back.
        """
        return self._executing.setdefault(pool, {})

    @property
    def executing(self) -> list[Execution]:
        """All executions that have started and not ended."""
        return [execution for own in self._executing.values() for execution in list(own.values())]

    @property
    def any_executing(self) -> bool:
        """True while there is one."""
        return any(self._executing.values())

    @property
    def empty_claims(self) -> int:
        """How many claims there are of which nothing is in flight any more."""
        return len(self._empty_claims)

    def put_back_empty_claims(self, claims: list[int]) -> None:
        """Takes claims back that could not be dropped."""
        with self._lock:
            self._empty_claims += claims

    def take_empty_claims(self) -> list[int]:
        """The claims of which nothing is in flight any more, each given once."""
        with self._lock:
            empty, self._empty_claims = self._empty_claims, []
        return empty

    def find(self, job_ids: Iterable[int]) -> list[Execution]:
        """The executions of these jobs."""
        wanted = set(job_ids)
        return [execution for execution in self.snapshot() if execution.claimed.id in wanted] if wanted else []

    def running(self, type: str) -> int:
        """How many of a type are in flight."""
        return self._by_type[type]

    def running_of(self, type: str, tenant: str) -> int:
        """How many of a type's tenant are in flight."""
        return self._by_tenant[type, tenant]

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


def _tally(executions: Iterable[Execution]) -> ItemsView[tuple[str, str, int], int]:
    """How many there are of each type, tenant and claim."""
    return Counter(
        (execution.claimed.type, execution.claimed.tenant, execution.claimed.claim) for execution in executions
    ).items()
