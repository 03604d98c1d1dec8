"""The leader's claims: what is pending goes to the pool, within every limit.

A round claims from every lane that has a job and a free slot: lanes.py says whose turn it is, capacity.py how many
may run.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

import psycopg

from dispatcher.capacity import Capacity
from dispatcher.db import Connection
from dispatcher.executor import Registry
from dispatcher.inflight import Execution, InFlight
from dispatcher.lanes import Lanes
from dispatcher.metrics import Metrics
from dispatcher.pool import Pool, Pools
from dispatcher.queries import claims, lease, replicas
from dispatcher.queries.claims import Claimed, Take
from dispatcher.rules import TypeTenant

MAX_CLAIM = 1000  # jobs in one statement: larger ones gain nothing and delay the heartbeat
MAX_STEP_S = 0.2  # a round ends after this, so that the lease session beats in time
MAX_CLAIM_CHARS = 16_000_000  # of payloads, by what is typical: a claim must end well within the lease
MAX_AHEAD = 2000  # jobs claimed and waiting for a thread
MAX_IN_FLIGHT = 10_000  # jobs claimed and not settled: past that the database is slow, and more claims do not help
AHEAD_S = 0.05  # claim ahead what the pool starts in this time
NUDGE_EVERY_S = 0.002
GATHER, GATHER_S = 4, 0.01  # in a burst a round that takes all there is is followed by a pause: so many times as long
BURST_S = 0.01  # claims that follow within this are a burst: worth taking the awake lock
RECOUNT_S = 0.1  # what runs elsewhere is counted again after this
CONTROL_S = 5.0  # what operators say is read again after this, should a notification have been lost
QUICK_CLAIM = 100  # jobs from which on a claim does not look for row locks before it meets one
CAREFUL_S = 1.0  # then it looks for them for so long, since each one met costs lock_timeout
THROTTLE_S = 1.0  # how often people are shown what a rate holds back


class Dispatch:
    """Claims for `replica`, in the term and on the session it is given. `changed` is told which jobs were claimed, and
    must not raise: they run.
    """

    def __init__(
        self,
        *,
        replica: int,
        lease_number: int,
        registry: Registry,
        inflight: InFlight,
        pools: Pools,
        before_run: Callable[[], None],
        metrics: Metrics,
        changed: Callable[[Connection, Iterable[int]], None] = lambda _conn, _ids: None,
        aging_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._replica = replica
        self._lease_number = lease_number
        self._registry = registry
        self._inflight = inflight
        self._pools = pools
        self._before_run = before_run
        self._metrics = metrics
        self._changed = changed
        self._clock = clock
        self._capacity = Capacity(registry=registry, inflight=inflight)
        self._lanes = Lanes(registry=registry, capacity=self._capacity, aging_s=aging_s, clock=clock)
        self._term = 0
        self._leading = False
        self._news = False  # somebody enqueued, or may have
        self._hint: str | None = None  # of which type
        self._recount_due = 0.0
        self._control_due = 0.0
        self._bounds_noted = False
        self._throttle_due = 0.0
        self._claimed_at = 0.0
        self._careful_until = 0.0
        self._cut_short = False
        self._typical_chars = 1.0  # of a payload in the latest claim
        self.woken = threading.Event()
        """Set by whoever knows of work or of a free slot."""
        self.awake = False
        """True from when the awake lock was taken until a doze succeeded: enqueuers may rely on us to look."""
        self._awake_lock_held = False
        self.busy = False
        """True if the latest round claimed something soon after another that did."""
        self.looked_everywhere = False
        """True if the latest round read every lane from its start."""
        self.gather_s = 0.0
        """After a round of a burst that took all there was: how long to let more come together."""

    def set_limits(self, limits: Mapping[str, int]) -> None:
        """Limits from the settings: by type, `*` over all; they override the executors' own."""
        self._capacity.set_limits(limits)
        if self._leading:
            self._show_rules()
        self._control_due = 0.0
        self.woken.set()

    def set_unknown(self, running: Mapping[TypeTenant, int]) -> None:
        """Rows that say they run here although nothing does, and that could not be given back yet."""
        self._capacity.set_unknown(running)

    def prepare(self, conn: Connection) -> None:
        """Has the server plan what a term begins with: a stand-by has the time, and a leader's first claim has not."""
        claims.prepare(conn, self._replica)

    def begin(self, conn: Connection, term: int) -> None:
        """Starts a term: forgets everything, reads what operators say, counts what runs elsewhere from the rows.

        Raises SettingsError where a leader of another lease claims one of our types, which the start has not seen.
        """
        replicas.refuse_overlap(conn, lease=self._lease_number, types=self._registry.types)
        self._term, self.awake, self._awake_lock_held = term, False, False
        self._lanes.clear()
        self._capacity.begin(self._clock())
        self._read_controls(conn)
        self._count_elsewhere(conn)
        self._leading = True
        self._show_rules()

    def forget(self) -> None:
        """This replica does not lead: it goes by no rules, and shows none."""
        self._leading = False
        for gauge in (self._metrics.limit, self._metrics.rate, self._metrics.paused):
            gauge.clear()

    def heard(self, type: str | None = None) -> None:
        """Somebody enqueued, a job of `type` perhaps, or a slot became free elsewhere. Any thread."""
        self._hint = type
        self._news = True
        self._recount_due = 0.0
        self.woken.set()

    def heard_control(self) -> None:
        """A notification: an operator changed a rule."""
        self._control_due = 0.0
        self.woken.set()

    def recount(self) -> None:
        """What runs elsewhere has changed: count it before the next claim."""
        self._recount_due = self._control_due = 0.0
        self._news = True
        self.woken.set()

    def step(self, conn: Connection) -> int:
        """One round; returns how many jobs it claimed."""
        now = self._clock()
        self.looked_everywhere = self.busy = self._cut_short = False
        self.gather_s = 0.0
        supposed = False
        if self._news:
            self._news = False  # before the look: what is told from now on is looked at again
            hint, self._hint = self._hint, None
            self._lanes.read_again()
            supposed = hint is not None and self._suppose(hint)
        if now >= self._control_due:
            self._read_controls(conn)
        if self._capacity.shared and now >= self._recount_due:
            self._count_elsewhere(conn)
        if self.room() <= 0:
            if not self._bounds_noted:  # these bounds may be why
                self._note_bounds(conn)
            return 0
        self.looked_everywhere = self._lanes.due() and not supposed
        if self.looked_everywhere:
            self._lanes.read(conn)
        self._lanes.begin_round()
        claimed = sum(self._claim_for(pool, conn, now) for pool in self._pools)
        if not self._bounds_noted:  # for people, hence not before a term's first claim
            self._note_bounds(conn)
        if self._lanes.held and now >= self._throttle_due:
            self._throttle_due = now + THROTTLE_S
            claims.note_throttle(conn, {type: max(wait, 2 * THROTTLE_S) for type, wait in self._lanes.held.items()})
        return claimed

    def patience(self, longest_s: float) -> float:
        """How long the leader may wait without a look: until a rate lets a job start that waits for nothing else."""
        return min([longest_s, *self._lanes.held.values()])

    def nap(self) -> float | None:
        """How long to wait for a rate alone, with the lanes as they were read; None if they are to be looked at again.

        A rate may let the next job start sooner than very many lanes can be read. None while enqueuers rely on us to
        look.
        """
        wait = self.patience(math.inf)
        if self.awake or self._news or self._cut_short or wait > self._lanes.due_in():
            return None
        self._claimed_at = 0.0  # a claim that follows a wait belongs to no burst
        return wait

    def room(self) -> int:
        """How many jobs may be claimed now for the pool that has the most places."""
        return max(self._room_in(pool) for pool in self._pools)

    def rest(self, timeout_s: float) -> None:
        """Waits until woken; sees to it meanwhile that what waits in the pool is taken by a thread, if one is free."""
        until = self._clock() + timeout_s
        while self._pools.waiting and (left := until - self._clock()) > 0:
            if self.woken.wait(min(left, NUDGE_EVERY_S)):
                return
            self._pools.nudge()
        self.woken.wait(max(0.0, until - self._clock()))

    def return_stalled(self, conn: Connection) -> None:
        """Gives back what was claimed ahead and is not started: its pool has become slow."""
        if stalled := [pool for pool in self._pools if pool.stalled()]:
            self._give_back(conn, [execution for pool in stalled for execution in pool.take_waiting()])
            self._lanes.read_again()

    def return_waiting(self, conn: Connection) -> int:
        """Gives back what no pool has started yet; how many jobs."""
        return self._give_back(conn, self._pools.take_waiting())

    def fall_asleep(self, conn: Connection) -> bool:
        """True where the leader may wait for a notification, after it has looked once more."""
        if not self.awake:
            return True
        held, self._awake_lock_held = self._awake_lock_held, False
        try:
            dozed = lease.doze(conn, self._lease_number, give_back=held)
        except psycopg.Error:
            self._awake_lock_held = held  # perhaps it is: to give it back twice does no harm
            raise
        if dozed:
            self.awake = False
            return True
        return False  # somebody who saw us awake has yet to commit: until a doze succeeds there is no sleep

    def end(self, conn: Connection) -> None:
        """Before the lease is given away: enqueuers must notify whoever leads next."""
        if self._awake_lock_held:
            self._awake_lock_held = False
            lease.doze(conn, self._lease_number, give_back=True)
        self.awake = False

    def stay_awake(self, conn: Connection) -> None:
        """Lets enqueuers know that they need not notify."""
        if not self._awake_lock_held:
            self._awake_lock_held = lease.stay_awake(conn, self._lease_number)
            self.awake = self.awake or self._awake_lock_held

    def read_again(self) -> None:
        """The next round reads every lane from its start, unless the latest one was cut short."""
        if not self._cut_short:
            self._lanes.read_again()

    def _room_in(self, pool: Pool) -> int:
        """As many as there are places free, and some ahead where the pool is quick."""
        waiting, ahead = pool.waiting, min(MAX_AHEAD, int(pool.rate() * AHEAD_S))
        if waiting * 2 > ahead and waiting > 0:
            return 0  # half a queue is left: a larger claim later is cheaper than a small one now
        room = min(pool.size - pool.executing + ahead - waiting, MAX_IN_FLIGHT - len(self._inflight))
        return min(room, self._capacity.left())

    def _claim_for(self, pool: Pool, conn: Connection, began: float) -> int:
        """Claims for one pool, in a round that began at that time."""
        room = min(self._room_in(pool), MAX_CLAIM, max(1, int(MAX_CLAIM_CHARS / self._typical_chars)))
        if room <= 0:
            return 0
        types, free = self._pools.types(pool), pool.size - pool.executing - pool.waiting
        # A lane whose share is locked by somebody gives nothing and is left out then: the others must not wait for it.
        while takes := self._lanes.takes(conn, types=types, room=room, places=free):
            if claimed := self._claim(conn, takes):
                if self.busy and claimed < room and self._lanes.empty:
                    self.gather_s = min(GATHER_S, GATHER * (self._clock() - began))
                return claimed
            if self._clock() - began > MAX_STEP_S:  # the next round goes on with the lanes that are left
                self.looked_everywhere, self._cut_short = False, True
                break
        return 0

    def _suppose(self, type: str) -> bool:
        """Whether a job of that type may be claimed without a look, since somebody said that there is one."""
        pool = self._pools.serving(type)
        return pool is not None and self._room_in(pool) > 0 and self._lanes.suppose(type, self._pools.types(pool))

    def _give_back(self, conn: Connection, waiting: list[Execution]) -> int:
        if not waiting:
            return 0
        try:
            given_back = claims.release_jobs(conn, self._replica, [execution.key for execution in waiting])
        except psycopg.errors.LockNotAvailable:  # somebody's lock on the whole table: nothing was done
            self._pools.submit(waiting)
            raise
        except psycopg.Error:
            # They may have been given back, so they must not run here; if not, the next session finds rows that nobody
            # here runs, and gives those back.
            self._inflight.remove(waiting, doubted=True)
            raise
        self._pools.submit(
            [execution for execution in waiting if execution.key not in given_back]
        )  # locked by somebody
        gone = [execution for execution in waiting if execution.key in given_back]
        self._inflight.remove(gone)
        self._capacity.not_started(Counter(execution.claimed.type for execution in gone), self._clock())
        return len(given_back)

    def _count_elsewhere(self, conn: Connection) -> None:
        self._recount_due = self._clock() + RECOUNT_S  # before: what is heard meanwhile must not be overwritten
        self._capacity.set_elsewhere(claims.count_running(conn, self._replica))

    def _read_controls(self, conn: Connection) -> None:
        self._control_due = self._clock() + CONTROL_S  # before, as above
        try:
            changed = self._capacity.set_controls(claims.list_controls(conn), self._clock())
        except psycopg.Error:  # somebody's lock on the table, say: what one was told of must not wait for the next look
            self._control_due = 0.0
            raise
        if changed:
            if self._leading:
                self._show_rules()
            self._lanes.read_again()
            self.return_waiting(conn)  # what was claimed ahead by other rules
        self._bounds_noted = False

    def _note_bounds(self, conn: Connection) -> None:
        self._bounds_noted = True
        claims.note_bounds(
            conn,
            lease=self._lease_number,
            replica=self._replica,
            max_running=self._capacity.overall,
            sizes={pool.name: pool.size for pool in self._pools},
        )

    def _show_rules(self) -> None:
        for type, rule in self._capacity.rules.items():
            for gauge, value in ((self._metrics.limit, rule.limit), (self._metrics.rate, rule.rate)):
                if value is not None:
                    gauge.labels(type).set(value)
                else:
                    with suppress(KeyError):
                        gauge.remove(type)
            self._metrics.paused.labels(type).set(rule.paused)

    def _claim(self, conn: Connection, takes: list[Take]) -> int:
        began = self._clock()
        try:
            rows = self._claim_rows(conn, takes)
        except psycopg.Error:
            # If it was too large to end in time it would be again: ask for far fewer until a claim succeeds.
            self._typical_chars = max(16 * self._typical_chars, MAX_CLAIM_CHARS / 64)
            raise
        claimed_at = self._clock()
        self._lanes.advance(takes, rows)
        if rows:
            self._capacity.started(Counter(row.type for row in rows), claimed_at)
            self._typical_chars = max(1.0, sum(len(row.payload) for row in rows) / len(rows))
            self.busy, self._claimed_at = began - self._claimed_at < BURST_S, claimed_at
            self._metrics.claim_seconds.observe(claimed_at - began)
            self._metrics.claim_size.observe(len(rows))
            self._hand_over(rows, claimed_at)
            self._changed(conn, (row.id for row in rows))  # last: no job waits for it
        return len(rows)

    def _claim_rows(self, conn: Connection, takes: list[Take]) -> list[Claimed]:
        if self._clock() >= self._careful_until and sum(one.take for one in takes) >= QUICK_CLAIM:
            try:
                return claims.claim_jobs(conn, takes, owner=self._replica, term=self._term, free_only=False)
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                self._careful_until = self._clock() + CAREFUL_S
        return claims.claim_jobs(conn, takes, owner=self._replica, term=self._term)

    def _hand_over(self, rows: list[Claimed], claimed_at: float) -> None:
        specs = {type: spec for type in {row.type for row in rows} if (spec := self._registry.get(type)) is not None}
        executions = [Execution(row, specs[row.type], claimed_at) for row in rows]  # only registered types are claimed
        self._inflight.add(executions)
        self._before_run()  # the fence is armed before the first of them starts
        self._pools.submit(executions)
