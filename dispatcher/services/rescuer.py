"""The rescuer takes running jobs from replicas that are gone.

Gone means: the liveness lock has been absent for orphan_after, at one incarnation, by this observer's own clock (a
replica fences itself before that: fence.py), or the death of the process and of what it started is proven on this
host. Every replica observes, so that a change of leader does not start the wait anew; only the leader rescues. The
sweep is level-triggered: what it could not take now it takes next time.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Collection, Sequence

import psycopg

from dispatcher import identity
from dispatcher.db import Connection, patiently
from dispatcher.executor import Registry
from dispatcher.job import FINAL, Job
from dispatcher.metrics import Metrics
from dispatcher.outcome import Outcome, crashed, timed_out
from dispatcher.queries import outcomes, replicas, upkeep
from dispatcher.queries.replicas import Replica
from dispatcher.retry import RetryPolicy
from dispatcher.trouble import Trouble, undone

log = logging.getLogger("dispatcher.rescuer")

COME_BACK_S = 5.0  # after an outage, before who is not back yet counts as gone: tries to connect are up to 2 s apart
FIRST_CLAIM_S = 0.005  # into a term: what waits is started before we look for what ran


class Rescuer:
    """Observes the replicas of one lease; rescues while `leading`."""

    def __init__(
        self,
        *,
        open_session: Callable[[], Connection],
        replica: int,
        lease_number: int,
        orphan_after_s: float,
        overdue_grace_s: float,
        registry: Registry,
        leading: Callable[[], bool],
        rescued: Callable[[], None],
        failed: Callable[[Sequence[tuple[Job, Outcome]]], None] = lambda _ended: None,
        metrics: Metrics,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._open_session = open_session
        self._replica = replica
        self._lease_number = lease_number
        self._orphan_after_s = orphan_after_s
        self._overdue_grace_s = overdue_grace_s
        self._registry = registry
        self._leading = leading
        self._rescued = rescued
        self._failed = failed
        self._metrics = metrics
        self._trouble = Trouble("the rescuer's session", log=log, metrics=metrics)
        self._stop = stop
        self._clock = clock
        self._chance = chance
        self._every_s = min(3.0, max(0.1, orphan_after_s / 10))
        self._absent: dict[int, tuple[int, float]] = {}  # replica: (incarnation, since)
        self._overdue_at = 0.0
        self._believe_from = 0.0
        self._woken = threading.Event()
        self._conn: Connection | None = None

    def wake(self) -> None:
        """Look now: this replica has come to lead."""
        self._woken.set()

    def step(self) -> None:
        """One look at all replicas, and the pause after it."""
        self._woken.clear()
        if self._stop.is_set():  # after the clearing: who stops us sets that first, then wakes us
            return
        try:
            self.look()
        except psycopg.Error as exc:
            kept = undone(self._conn, exc)
            if not kept:
                self.close()
            self._stop.wait(self._trouble.note(exc, kept=kept))
        else:
            self._trouble.over()
        # While somebody is missing and we lead, a proof of death may come any moment.
        if self._woken.wait(min(0.1, self._every_s) if self._absent and self._leading() else self._every_s):
            self._stop.wait(FIRST_CLAIM_S)

    def look(self) -> None:
        """Notes who is absent since when; rescues from those that are gone."""
        if self._conn is None:
            self._conn = patiently(self._open_session, stop=self._stop, failed=self._trouble.note)
            if self._conn is None:
                return
            # Where the database was away, so was everybody, and that is no reason to end who comes back after us.
            self._believe_from = self._clock() + min(COME_BACK_S, self._orphan_after_s)
        # An absence began before the answer and lasts until the next question: a slow answer must not stretch it.
        conn, now = self._conn, self._clock()
        seen = replicas.list_replicas(conn, self._lease_number)
        answered = self._clock()
        absent: dict[int, tuple[int, float]] = {}
        for replica in seen:
            if replica.present or replica.id == self._replica:
                continue
            incarnation, since = self._absent.get(replica.id, (replica.incarnation, answered))
            if incarnation != replica.incarnation:  # it came back and went again between two looks
                since = answered
            absent[replica.id] = (replica.incarnation, since)
            absent_s = now - since
            if self._leading() and (reason := self._gone(replica, absent_s)):
                # What ran outside of that process may run on: its own fence ends it, as if nothing was proven.
                spared = replica.remote_types if absent_s < self._orphan_after_s else frozenset[str]()
                if self._rescue(conn, replica, reason, spared):
                    del absent[replica.id]
        self._absent = absent
        if self._leading() and now >= self._overdue_at:
            self._overdue_at = now + self._every_s
            for owner in upkeep.ask_overdue_owners(conn, self._overdue_grace_s):
                log.info("asked an owner to look at overdue jobs", extra={"replica": owner})

    def close(self) -> None:
        """Closes the session."""
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()

    def _gone(self, replica: Replica, absent_s: float) -> str | None:
        if identity.proven_dead(replica.process):
            return "dead"
        if absent_s < self._orphan_after_s or self._clock() < self._believe_from:
            return None
        # It should have ended itself by now; on this host we can see to it, and see it gone before its jobs are taken.
        # Not where our database is a copy of the one that it works for, be it well and on this host.
        return None if replica.at_home and identity.kill(replica.process) else "vanished"

    def _rescue(self, conn: Connection, replica: Replica, reason: str, spared: Collection[str]) -> bool:
        """Writes the outcome of each orphan, but of spared types; True once it has none left and is removed."""
        with conn.transaction():
            if not upkeep.guard_rescue(conn, replica.id, replica.incarnation):
                return False
            orphans = [orphan for orphan in upkeep.list_orphans(conn, replica.id) if orphan.job.type not in spared]
            decided = [self._decide(orphan) for orphan in orphans]
            final = [outcome for outcome in decided if outcome.state in FINAL]
            back = [outcome for outcome in decided if outcome.state not in FINAL]
            done: outcomes.Recorded = {}
            if final:
                done |= outcomes.finish_jobs(conn, replica.id, final, free_only=True)
            if back:
                done |= outcomes.reschedule_jobs(conn, replica.id, back)
            removed = replicas.remove_replica(conn, replica.id)
        if orphans:
            self._metrics.rescued.labels(reason).inc(len(orphans))
            log.warning(
                "took jobs from a replica that is gone",
                extra={"replica": replica.id, "jobs": len(orphans), "reason": reason},
            )
        by_id = {orphan.job.id: orphan.job for orphan in orphans}
        self._failed(
            [(by_id[outcome.job_id], outcome) for outcome in decided if (outcome.job_id, outcome.attempt) in done]
        )
        if removed:
            identity.forget(replica.process)
        if orphans or removed:
            self._rescued()
        return removed

    def _decide(self, orphan: upkeep.Orphan) -> Outcome:
        spec = self._registry.get(orphan.job.type)
        policy, most, chance = spec.retry if spec else RetryPolicy(), orphan.max_attempts, self._chance()
        if orphan.timed_out is not None:  # it hung: whatever ended its process, that is what it failed by
            return timed_out(orphan.job, orphan.timed_out, policy=policy, max_attempts=most, chance=chance)
        message = "the process that ran this job is gone"
        return crashed(orphan.job, policy=policy, max_attempts=most, chance=chance, message=message)
