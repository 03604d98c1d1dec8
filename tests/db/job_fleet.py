"""Two replicas without a daemon, driven by the product's own services: they lead, claim, settle, crash."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypedDict

from dispatcher.db import Connection
from dispatcher.executor import Executor, Registry
from dispatcher.inflight import Execution
from dispatcher.metrics import Metrics
from dispatcher.queries import claims, upkeep
from dispatcher.services.completer import Completer
from dispatcher.services.lease import Lease
from dispatcher.services.linker import Linker
from dispatcher.services.pruner import Pruner
from dispatcher.services.rescuer import Rescuer
from dispatcher.tally import Tally
from tests.db.contenders import Clock, backend, contender, gone, register
from tests.db.leading import Leading
from tests.db.running import session

LEASE_S = 600.0  # a test that stands in a debugger must not lose it
ORPHAN_AFTER_S = 30.0


@dataclass
class Member:
    """A replica: its lease session, what it claims with once it has led, and what runs on it."""

    id: int
    lease: Lease
    completer: Completer
    metrics: Metrics
    leading: Leading | None = None
    running: dict[int, Execution] = field(default_factory=dict)

    def stale(self) -> float:
        """Outcomes that came too late."""
        return self.metrics.registry.get_sample_value("dispatcher_stale_outcomes_total") or 0.0

    def let_go(self, execution: Execution) -> None:
        """Its thread is back."""
        self.running.pop(execution.claimed.id, None)
        if self.leading is not None:
            self.leading.inflight.executing_in("thread").pop(execution.key, None)


class _Shared(TypedDict):
    open_session: Callable[[], Connection]
    leading: Callable[[], bool]
    metrics: Metrics
    stop: threading.Event


class Fleet:
    """The members of one lease, the first of which leads, and the services of whoever leads."""

    def __init__(self, dsn: str, conn: Connection, executors: Sequence[Executor]) -> None:
        self._dsn, self._conn, self._executors = dsn, conn, executors
        self._clock = Clock()
        shared = _Shared(
            open_session=lambda: session(dsn), leading=lambda: True, metrics=Metrics(), stop=threading.Event()
        )
        self.linker = Linker(released=lambda: None, **shared)
        self.rescuer = Rescuer(
            replica=0,  # none of them
            lease_number=1,
            orphan_after_s=ORPHAN_AFTER_S,
            overdue_grace_s=ORPHAN_AFTER_S,
            registry=Registry(executors),
            rescued=lambda: None,
            clock=self._clock,
            chance=lambda: 0.5,
            **shared,
        )
        self.pruner = Pruner(keep_succeeded=timedelta(0), keep_failed=timedelta(0), clock=lambda: 0.0, **shared)
        self._members = ExitStack()
        self.members: list[Member] = []
        self.ghosts: list[tuple[Member, Execution]] = []

    def begin(self) -> None:
        """Two new replicas."""
        self._members.close()
        self.ghosts.clear()
        self.members = [self._join(), self._join()]
        self.lead()

    def close(self) -> None:
        """Ends all sessions."""
        self._members.close()
        for service in (self.linker, self.rescuer, self.pruner):
            service.close()

    def _join(self) -> Member:
        id = register(self._conn)
        lease = self._members.enter_context(contender(self._dsn, id, duration_s=LEASE_S))
        assert lease.connect()
        metrics = Metrics()
        own = Leading(self._conn, owner=id, executors=self._executors)
        completer = Completer(
            open_session=lambda: session(self._dsn),
            owner=id,
            inflight=own.inflight,
            metrics=metrics,
            tally=Tally(),
            settled=lambda *_: None,
            stop=threading.Event(),
        )
        self._members.callback(completer.close)
        return Member(id, lease, completer, metrics, own)

    def lead(self) -> None:
        """The first member takes the lease."""
        first = self.members[0]
        assert first.lease.contend()
        assert first.lease.conn is not None
        assert first.lease.term is not None
        assert first.leading is not None
        first.leading.conn = first.lease.conn
        first.leading.dispatch.begin(first.lease.conn, first.lease.term)

    def change_leader(self) -> None:
        """The leader gives the lease away and keeps its jobs."""
        first, second = self.members
        assert first.leading is not None
        assert first.lease.conn is not None
        first.leading.dispatch.end(first.lease.conn)
        first.lease.resign()
        first.leading.dispatch.forget()
        self.members = [second, first]
        self.lead()

    def claim(self, room: int) -> list[Execution]:
        """What the leader claims with so many threads free."""
        leader = self.members[0]
        assert leader.leading is not None
        pool = leader.leading.pool
        pool.size = pool.executing + room
        leader.leading.dispatch.recount()  # as the listener has it done
        before = len(pool.taken)
        leader.leading.rounds()
        taken = pool.taken[before:]
        leader.running |= {one.claimed.id: one for one in taken}
        return taken

    def give_back(self, member: Member, execution: Execution) -> None:
        """A job that it claimed and did not start."""
        assert member.leading is not None
        assert claims.release_jobs(self._conn, member.id, [execution.key]) == {execution.key}
        member.leading.inflight.remove([execution])
        member.let_go(execution)

    def settle(self, member: Member, execution: Execution) -> bool:
        """Records an outcome; False where it came too late."""
        late = member.stale()
        member.let_go(execution)
        member.completer.put(execution)
        member.completer.step()
        assert member.leading is not None
        assert execution.key not in member.leading.inflight
        return member.stale() == late

    def crash(self, at: int) -> Member:
        """A replica vanishes, is found missing, and its jobs are taken; another one comes. Whoever is left leads."""
        member = self.members.pop(at)
        pid = backend(member.lease)
        member.lease.drop()
        assert gone(self._conn, pid)
        self.ghosts += [(member, execution) for execution in member.running.values()]
        self.rescuer.look()
        self._clock.now += ORPHAN_AFTER_S + 1.0
        self.rescuer.look()
        self.members.append(self._join())
        if at == 0:
            self.lead()
        return member

    def link(self) -> None:
        """Until nothing follows any more."""
        while self.linker.turn() == 0.0:
            pass

    def promote(self) -> None:
        """What is due."""
        upkeep.promote_jobs(self._conn, 1000)

    def prune(self) -> None:
        """With no retention at all, to the end of the walk."""
        while not self.pruner.prune_page():
            pass
