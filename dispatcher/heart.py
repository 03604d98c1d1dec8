"""The heart: the one thread that uses the lease session. It beats, contends, leads, and arms the fence.

Everything on that session happens here, one after another: so a claim, and the look at what the database believes we
run, exclude each other without a lock.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import psycopg

from dispatcher import fence
from dispatcher.custody import Custody
from dispatcher.db import Connection
from dispatcher.inflight import InFlight
from dispatcher.metrics import Metrics
from dispatcher.pool import Pools
from dispatcher.queries import outcomes, replicas
from dispatcher.services.dispatch import Dispatch
from dispatcher.services.lease import Lease

log = logging.getLogger("dispatcher.heart")

FENCE_MARGIN = 0.05  # of orphan_after: the fence strikes before anyone may take the jobs
COOPERATION = 0.6  # of orphan_after without an answer: jobs are asked to stop
HANG_S = 15.0  # a heart that has not stepped for so long hangs; connecting alone may take 7 s
TABLE_LOCK_PAUSE_S = 0.1
RECORD_WITHIN_S = 5.0  # a leader that can record no outcome for so long lets another lead, which perhaps can
DOZE_AGAIN_S = 0.001  # an enqueuer was about to commit: look again after this, then after twice as long, ...


class Heart:
    """Runs a replica's lease session. `began` is called whenever a term begins; `canceled` is told of running jobs that
    somebody asked to stop, should the notification have been lost. `behind_s` says for how long no outcome could be
    recorded: what would only wait to be recorded is not claimed.
    """

    def __init__(
        self,
        *,
        lease: Lease,
        dispatch: Dispatch,
        pools: Pools,
        inflight: InFlight,
        began: Callable[[], None],
        canceled: Callable[[list[int]], None],
        replica: int,
        lease_number: int,
        heartbeat_s: float,
        poll_interval_s: float,
        orphan_after_s: float,
        metrics: Metrics,
        behind_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._lease = lease
        self._dispatch = dispatch
        self._pools = pools
        self._inflight = inflight
        self._began = began
        self._canceled = canceled
        self._replica = replica
        self._lease_number = lease_number
        self._heartbeat_s = heartbeat_s
        self._poll_interval_s = poll_interval_s
        self._orphan_after_s = orphan_after_s
        self.hang_s = max(HANG_S, 2 * lease.duration_s)
        """A turn that takes so long hangs: a statement in it may take 0.6 of the lease."""
        self._metrics = metrics
        self._behind_s = behind_s
        self._fence = fence.Fence()
        self._stepped_at = time.monotonic()
        self._contend_from = 0.0
        self._doze_again_s = DOZE_AGAIN_S
        self._needed_at = 0.0  # when the fence was last armed
        self._resign_term: int | None = None
        self._custody = Custody(
            inflight=inflight, replica=replica, lease_number=lease_number, set_unknown=dispatch.set_unknown
        )
        self._look_for_cancels = False
        self._leaving = False  # as older replicas see it
        self._prepared = False  # this session for leading
        self.draining = threading.Event()
        """Set once: no more claims; what runs may finish."""

    @property
    def connected(self) -> bool:
        """True while the lease session stands."""
        return self._lease.conn is not None

    @property
    def trouble(self) -> str | None:
        """What is wrong with the lease session."""
        return self._lease.trouble

    @property
    def trusted_from(self) -> float | None:
        """Since when this replica may count on its jobs: when the last request was sent that the lease session has
        answered, in boottime() seconds.
        """
        return self._custody.trust(self._lease.trusted_from)

    @property
    def term(self) -> int | None:
        """The term while this replica leads."""
        return self._lease.term

    @property
    def progressing(self) -> bool:
        """False once the heart has not stepped for long."""
        return time.monotonic() - self._stepped_at < self.hang_s

    @property
    def idle(self) -> bool:
        """True if no job runs here or is about to."""
        return not self._inflight.any_executing and not self._pools.waiting

    def drain(self) -> None:
        """Gives the lease away and returns what was never started. Any thread."""
        self.draining.set()
        self._dispatch.woken.set()

    def ask_to_resign(self, term: int | None = None) -> None:
        """Gives the lease away, but in this term only (the present one, if none is named). Any thread."""
        self._resign_term = self._lease.term if term is None else term
        self._dispatch.woken.set()

    def look_at_own(self) -> None:
        """Compares what the database believes runs here with what does. Any thread."""
        self._custody.look_again()
        self._dispatch.woken.set()

    def look_for_cancels(self) -> None:
        """Looks now whether somebody wants a job of this replica to stop. Any thread."""
        self._look_for_cancels = True
        self._dispatch.woken.set()

    def step(self) -> None:
        """One turn: a beat if due, then what this replica's role asks for; about a heartbeat at most."""
        began = time.monotonic()
        try:
            self._turn()
        except psycopg.errors.LockNotAvailable:
            # Somebody's lock on a whole table: nothing was done, and the session is sound.
            self._metrics.db_errors.inc()
            self._custody.look_again()  # in case it was that look, or giving jobs back, that was refused
            self._wait(TABLE_LOCK_PAUSE_S)
        except psycopg.Error as exc:  # a claim or the like
            self._custody.look_again()  # in case it was that look, and the session stays
            self._lease.failed(exc, took_s=time.monotonic() - began)
        self._stepped_at = time.monotonic()
        self._metrics.last_tick.set_to_current_time()

    def close(self) -> None:
        """Closes the lease session, and with it every lock. Without a job there is nothing to fence any more, however
        long the process takes to end.
        """
        self._lease.drop()
        if self.idle and not len(self._inflight):
            self._fence.disarm()

    def arm_fence(self) -> None:
        """Lets the kernel end this process before anyone may take its jobs, counted from the last good answer."""
        trusted = self.trusted_from
        if trusted is not None:
            self._needed_at = time.monotonic()
            self._fence.arm(trusted + self._orphan_after_s * (1 - FENCE_MARGIN))

    def strike_in(self, seconds: float) -> None:
        """Lets the kernel end this process in so many seconds, whatever happens; sooner where its jobs need that."""
        deadline, trusted = fence.boottime() + seconds, self.trusted_from
        if trusted is not None and (not self.idle or self._any_in_doubt()):
            deadline = min(deadline, trusted + self._orphan_after_s * (1 - FENCE_MARGIN))
        self._fence.seal(deadline)

    def losing(self) -> bool:
        """True once the lease session has gone unanswered so long that jobs should stop. Any thread."""
        trusted = self.trusted_from
        silent = trusted is not None and fence.boottime() - trusted > COOPERATION * self._orphan_after_s
        if self.idle:
            if silent or self._lease.conn is None:
                self._disarm_fence()  # who runs no job just reconnects; a claim arms it before its first job starts
            return False
        self.arm_fence()  # not only by the heart: without a session it does not come so far
        return silent

    def _turn(self) -> None:
        self._dispatch.woken.clear()  # before any look: what is set from now on is looked at again
        conn = self._live()
        if conn is None:
            return
        if (hold_s := self._lease.hold_until - time.monotonic()) > 0:
            self._hold(conn, hold_s)
            return
        self._custody.compare(conn)
        if self.draining.is_set():
            self._drain(conn)
        elif self._lease.term is not None:
            self._lead(conn)
        else:
            self._contend(conn)

    def _live(self) -> Connection | None:
        """Keeps the session, and by it this replica and its jobs, alive; None where there is none now."""
        lease = self._lease
        if lease.term is None:
            self._dispatch.forget()
        if lease.conn is None:
            self._custody.lose_session(lease.trusted_from)
            if not lease.connect():
                return None
            self._prepared = self._leaving = False
        if lease.beat(running=not self.idle) or self._look_for_cancels:
            self._find_canceled()
        if self.idle:
            self._disarm_fence()
        else:
            self.arm_fence()
        return lease.conn

    def _hold(self, conn: Connection, hold_s: float) -> None:
        """The database was in trouble just now: whoever wakes us gives no cause for haste."""
        if self.draining.is_set() and self._lease.term is not None:
            self._resign(conn)
        self._wait(hold_s)

    def _find_canceled(self) -> None:
        conn, self._look_for_cancels = self._lease.conn, False
        ids = [execution.claimed.id for execution in self._inflight.snapshot() if execution.outcome is None]
        if conn is not None and ids:
            self._canceled(outcomes.list_canceled(conn, self._replica, ids))

    def _contend(self, conn: Connection) -> None:
        behind = self._behind_s() > RECORD_WITHIN_S
        self._set_leaving(conn, leaving=behind)
        if behind or time.monotonic() < self._contend_from:
            self._wait(self._heartbeat_s)
        elif self._lease.contend():
            self._begin()
        elif not self._prepared and self._lease.conn is not None:
            self._dispatch.prepare(self._lease.conn)
            self._prepared = True

    def _begin(self) -> None:
        conn, term = self._lease.conn, self._lease.term
        if conn is not None and term is not None:
            # In statements after the grant: an older snapshot would miss the former leader's last claims.
            try:
                self._dispatch.begin(conn, term)
            except psycopg.Error as exc:  # a term must not stand without a count of what runs elsewhere
                self._lease.failed(exc)
                self._lease.resign()
            else:
                self._began()

    def _lead(self, conn: Connection) -> None:
        dispatch = self._dispatch
        if self._resign_term == self._lease.term:
            # Any standby has it by then; with none, we go on.
            self._contend_from = time.monotonic() + 2 * self._heartbeat_s
            self._resign(conn)
            return
        if (behind_s := self._behind_s()) > 0:
            self._fall_behind(conn, behind_s)
            return
        dispatch.return_stalled(conn)
        if not self._lease.may_claim():
            self._wait(self._heartbeat_s)
        elif dispatch.step(conn):
            self._doze_again_s = DOZE_AGAIN_S
            if dispatch.busy:
                dispatch.stay_awake(conn)
                time.sleep(dispatch.gather_s)  # what ends meanwhile is no reason to look sooner
        elif dispatch.room() <= 0:
            self._wait(self._heartbeat_s)
        elif (nap := dispatch.nap()) is not None:
            self._wait(nap)
        elif not dispatch.looked_everywhere:
            dispatch.read_again()
        elif dispatch.awake:
            self._fall_asleep(conn)
        else:
            self._wait(dispatch.patience(self._poll_interval_s))
            dispatch.read_again()

    def _fall_behind(self, conn: Connection, behind_s: float) -> None:
        """Claims nothing; after a while gives away what has not started, and the lease, until outcomes are recorded."""
        if behind_s > RECORD_WITHIN_S:
            log.warning("no outcome can be recorded: another replica shall lead", extra={"seconds": round(behind_s, 1)})
            self._resign(conn)
            self._return_waiting(conn)
        else:
            self._wait(self._heartbeat_s)

    def _fall_asleep(self, conn: Connection) -> None:
        """From now on enqueuers notify; the next turn looks once more before it waits for them to."""
        if not self._dispatch.fall_asleep(conn):
            self._wait(self._doze_again_s)
            self._doze_again_s = min(2 * self._doze_again_s, self._poll_interval_s)
        self._dispatch.read_again()

    def _drain(self, conn: Connection) -> None:
        if self._lease.term is not None:
            self._resign(conn)
        self._set_leaving(conn, leaving=True)
        self._return_waiting(conn)
        self._wait(self._heartbeat_s)

    def _set_leaving(self, conn: Connection, *, leaving: bool) -> None:
        """Lets older replicas lead meanwhile: they stand back for a newer one that does not say so."""
        if leaving is not self._leaving and replicas.set_leaving(conn, self._replica, leaving=leaving):
            self._leaving = leaving

    def _resign(self, conn: Connection) -> None:
        try:
            self._dispatch.end(conn)
        except psycopg.Error as exc:  # the awake lock would stay, and with it everybody's belief that we look
            self._lease.failed(exc, keep=False)
        self._lease.resign()

    def _return_waiting(self, conn: Connection) -> None:
        if self._dispatch.return_waiting(conn):
            outcomes.wake_leader(conn, self._lease_number)

    def _disarm_fence(self) -> None:
        # Not at once: a job that a thread has just taken neither waits nor is seen to run for an instant.
        if time.monotonic() - self._needed_at > min(2 * self._heartbeat_s, 0.1 * self._orphan_after_s):
            self._fence.disarm(unless=self._any_in_doubt)

    def _any_in_doubt(self) -> bool:
        """Also what was claimed and is not yet handed over, and what a thread took right before the process froze."""
        return any(execution.outcome is None for execution in self._inflight.snapshot())

    def _wait(self, seconds: float) -> None:
        self._dispatch.rest(min(seconds, self._lease.beat_in()))
