"""The leader's claims: what is pending goes to the pool, within every limit.

A round claims from every lane that has a job and a free slot. Within a burst a lane is read on from the last job
claimed, past the index entries of jobs that are gone (a cursor); after a short while it is read from its start again,
so that a job that committed late, was retried or has a better priority is hidden no longer than that.

Limits are counted from two sources that only this process changes or that only shrink: what is in flight here, and
the rows that run elsewhere (other replicas do not claim while we hold the lease).
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Protocol

import psycopg

from dispatcher.db import Connection
from dispatcher.executor import Registry
from dispatcher.inflight import Execution, InFlight
from dispatcher.metrics import Metrics
from dispatcher.queries import claims, lease
from dispatcher.queries.claims import START, Claimed, Cursor, Lane

MAX_CLAIM = 1000  # jobs in one statement: larger ones gain nothing and delay the heartbeat
MIN_LANES, LANES_PER_ROOM = 64, 2  # how many lanes a claim considers: past that, sharing costs more than the jobs
MAX_SHARED = 20_000  # rows read to share the room among lanes
MAX_STEP_S = 0.2  # a round ends after this, so that the lease session beats in time
MAX_CLAIM_CHARS = 16_000_000  # of payloads, by what is typical: a claim must end well within the lease
MAX_AHEAD = 2000  # jobs claimed and waiting for a thread
MAX_IN_FLIGHT = 10_000  # jobs claimed and not settled: past that the database is slow, and more claims do not help
AHEAD_S = 0.05  # claim ahead what the pool starts in this time
NUDGE_EVERY_S = 0.002
READ_AGAIN_S = 0.1  # a lane is read from its start again after this, or after
BURST_S = 0.01  # claims that follow within this are a burst: worth taking the awake lock
READ_AGAIN_COST = 10  # times what the last full read took, whichever is longer


class Pool(Protocol):
    """What the dispatch needs of the place where jobs run."""

    threads: int

    @property
    def waiting(self) -> int:
        """Jobs that no thread has taken yet."""

    def rate(self) -> float:
        """Jobs ended a second, of late."""

    def nudge(self) -> None:
        """Sees to it that jobs which wait are taken by a thread, if one is free."""

    def stalled(self) -> bool:
        """True if jobs wait and none has been started for a while."""

    def submit(self, executions: list[Execution]) -> None:
        """Takes jobs to run."""

    def take_waiting(self) -> list[Execution]:
        """Takes back all jobs that no thread has taken yet."""


class Dispatch:
    """Claims for `replica`, in the term and on the session it is given."""

    def __init__(
        self,
        *,
        replica: int,
        lease_number: int,
        registry: Registry,
        inflight: InFlight,
        pool: Pool,
        before_run: Callable[[], None],
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._replica = replica
        self._lease_number = lease_number
        self._registry = registry
        self._inflight = inflight
        self._pool = pool
        self._before_run = before_run
        self._metrics = metrics
        self._clock = clock
        self._limits: Mapping[str, int] = {}
        self._term = 0
        self._elsewhere: dict[str, int] = {}
        self._elsewhere_due = 0.0
        self._lanes: dict[Lane, Cursor] = {}  # in the order in which they get their turn
        self._round = 0
        self._served: dict[Lane, int] = {}  # the round in which each lane last got a turn
        self._read_again_at = 0.0
        self._claimed_at = 0.0
        self._cut_short = False
        self._typical_chars = 1.0  # of a payload in the latest claim
        self.unknown: Mapping[str, int] = {}
        """Rows by type that say they run here although nothing does, and that could not be given back yet."""
        self.woken = threading.Event()
        """Set by whoever knows of work or of a free slot."""
        self.awake = False
        """True from when the awake lock was taken until a doze succeeded: enqueuers may rely on us to look."""
        self._awake_lock_held = False
        self.busy = False
        """True if the latest round claimed something soon after another that did."""
        self.looked_everywhere = False
        """True if the latest round read every lane from its start."""

    def set_limits(self, limits: Mapping[str, int]) -> None:
        """Limits from the settings: by type, `*` over all; they override the executors' own."""
        self._limits = dict(limits)
        for spec in self._registry:
            if (limit := self.limit(spec.type)) is not None:
                self._metrics.limit.labels(spec.type).set(limit)
        self.woken.set()

    def limit(self, type: str) -> int | None:
        """How many of a type may run at once over the fleet; None for no limit."""
        if type in self._limits:
            return self._limits[type]
        spec = self._registry.get(type)
        return None if spec is None else spec.limit

    def begin(self, conn: Connection, term: int) -> None:
        """Starts a term: forgets everything, and counts what runs elsewhere from the rows."""
        self._term, self.awake, self._awake_lock_held = term, False, False
        self._lanes.clear()
        self._read_again_at = 0.0
        self._count_elsewhere(conn)

    def heard(self) -> None:
        """A notification: somebody enqueued, or a slot became free elsewhere."""
        self._elsewhere_due = 0.0
        self.woken.set()

    def recount(self) -> None:
        """What runs elsewhere has changed: count it before the next claim."""
        self._elsewhere_due = 0.0
        self._read_again_at = 0.0
        self.woken.set()

    def step(self, conn: Connection) -> int:
        """One round; returns how many jobs it claimed."""
        now = self._clock()
        self.looked_everywhere = self.busy = self._cut_short = False
        if self._elsewhere and now >= self._elsewhere_due:
            self._count_elsewhere(conn)
        room = self.room()
        if room <= 0:
            return 0
        self.looked_everywhere = now >= self._read_again_at or not self._lanes
        if self.looked_everywhere:
            self._read_lanes(conn)
        # A lane whose share is locked by somebody gives nothing and is left out then: the others must not wait for it.
        room = min(room, MAX_CLAIM, max(1, int(MAX_CLAIM_CHARS / self._typical_chars)))
        while takes := self._takes(conn, room):
            if claimed := self._claim(conn, takes):
                return claimed
            if self._clock() - now > MAX_STEP_S:  # the next round goes on with the lanes that are left
                self.looked_everywhere, self._cut_short = False, True
                break
        return 0

    def room(self) -> int:
        """How many jobs may be claimed now: as many as threads are free, and some ahead where the pool is quick."""
        waiting, ahead = self._pool.waiting, min(MAX_AHEAD, int(self._pool.rate() * AHEAD_S))
        if waiting * 2 > ahead and waiting > 0:
            return 0  # half a queue is left: a larger claim later is cheaper than a small one now
        room = min(
            self._pool.threads - len(self._inflight.executing) + ahead - waiting, MAX_IN_FLIGHT - len(self._inflight)
        )
        overall = self._limits.get("*")
        if overall is not None:
            elsewhere = sum(self._elsewhere.values()) + sum(self.unknown.values())
            room = min(room, overall - len(self._inflight) - elsewhere)
        return room

    def rest(self, timeout_s: float) -> None:
        """Waits until woken; sees to it meanwhile that what waits in the pool is taken by a thread, if one is free."""
        until = self._clock() + timeout_s
        while self._pool.waiting and (left := until - self._clock()) > 0:
            if self.woken.wait(min(left, NUDGE_EVERY_S)):
                return
            self._pool.nudge()
        self.woken.wait(max(0.0, until - self._clock()))

    def return_stalled(self, conn: Connection) -> None:
        """Gives back what was claimed ahead and finds no thread: the pool has become slow."""
        if self._pool.stalled():
            self.return_waiting(conn)
            self._read_again_at = 0.0

    def return_waiting(self, conn: Connection) -> int:
        """Gives back what no thread has taken yet; how many jobs."""
        waiting = self._pool.take_waiting()
        if not waiting:
            return 0
        try:
            given_back = claims.release_jobs(conn, self._replica, [execution.key for execution in waiting])
        except psycopg.errors.LockNotAvailable:  # somebody's lock on the whole table: nothing was done
            self._pool.submit(waiting)
            raise
        except psycopg.Error:
            # They may have been given back, so they must not run here; if not, the next session finds rows that nobody
            # here runs, and gives those back.
            self._inflight.remove(waiting)
            raise
        self._pool.submit([execution for execution in waiting if execution.key not in given_back])  # locked by somebody
        self._inflight.remove([execution for execution in waiting if execution.key in given_back])
        return len(given_back)

    def fall_asleep(self, conn: Connection) -> bool:
        """True where the leader may wait for a notification, after it has looked once more."""
        if not self.awake:
            return True
        held, self._awake_lock_held = self._awake_lock_held, False
        if lease.doze(conn, self._lease_number, give_back=held):
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
            self._read_again_at = 0.0

    def _count_elsewhere(self, conn: Connection) -> None:
        self._elsewhere_due = self._clock() + READ_AGAIN_S  # before: what is heard meanwhile must not be overwritten
        self._elsewhere = claims.count_running(conn, self._replica)

    def _free(self, type: str) -> int:
        limit = self.limit(type)
        if limit is None:
            return MAX_CLAIM
        return limit - self._inflight.running(type) - self._elsewhere.get(type, 0) - self.unknown.get(type, 0)

    def _read_lanes(self, conn: Connection) -> None:
        began = self._clock()
        lanes = claims.list_lanes(conn)
        served = {found.lane: self._served.get(found.lane, 0) for found in lanes}
        self._served = {lane: turn for lane, turn in served.items() if turn}
        # By priority, then who has waited longest for a turn, then age.
        lanes.sort(key=lambda found: (found.head[0], served[found.lane], found.head[1]))
        self._lanes = {found.lane: START for found in lanes if self._registry.get(found.lane.type) is not None}
        took = self._clock() - began
        self._read_again_at = self._clock() + max(READ_AGAIN_S, READ_AGAIN_COST * took)

    def _takes(self, conn: Connection, room: int) -> list[tuple[Lane, int, Cursor]]:
        """What to claim of which lane; empty where no lane has a job and a free slot."""
        while takes := self._candidates(room):
            free = {lane.type: self._free(lane.type) for lane, _, _ in takes}
            asked: Counter[str] = Counter()
            for lane, take, _ in takes:
                asked[lane.type] += take
            enough = asked.total() <= room and all(asked[type] <= free[type] for type in asked)
            if enough or len(takes) == 1:
                return takes
            shares = claims.share_lanes(conn, takes, room=room, depth=max(2, MAX_SHARED // len(takes)))
            if shares:
                return [(lane, take, self._lanes[lane]) for lane, take in shares]
            for lane, _, _ in takes:  # nothing behind their cursors any more
                self._lanes.pop(lane, None)
        return []

    def _candidates(self, room: int) -> list[tuple[Lane, int, Cursor]]:
        """Of very many lanes only as many as the room can use: those with the best job first, then in turn."""
        free = {type: self._free(type) for type in {lane.type for lane in self._lanes}}
        open_lanes = ((lane, cursor) for lane, cursor in self._lanes.items() if free[lane.type] > 0)
        considered = islice(open_lanes, max(MIN_LANES, LANES_PER_ROOM * room))
        return [(lane, min(room, free[lane.type]), cursor) for lane, cursor in considered]

    def _claim(self, conn: Connection, takes: list[tuple[Lane, int, Cursor]]) -> int:
        began = self._clock()
        try:
            rows = claims.claim_jobs(conn, takes, owner=self._replica, term=self._term)
        except psycopg.Error:
            # If it was too large to end in time it would be again: ask for far fewer until a claim succeeds.
            self._typical_chars = max(16 * self._typical_chars, MAX_CLAIM_CHARS / 64)
            raise
        claimed_at = self._clock()
        self._advance(takes, rows)
        if rows:
            self._typical_chars = max(1.0, sum(len(row.payload) for row in rows) / len(rows))
            self.busy, self._claimed_at = began - self._claimed_at < BURST_S, claimed_at
            self._metrics.claim_seconds.observe(claimed_at - began)
            self._metrics.claim_size.observe(len(rows))
            self._hand_over(rows, claimed_at)
        return len(rows)

    def _advance(self, takes: list[tuple[Lane, int, Cursor]], rows: list[Claimed]) -> None:
        """Moves each lane's cursor behind what was claimed; a lane that gave less than asked for is empty for now."""
        self._round += 1
        got = Counter((row.type, row.tenant) for row in rows)
        last = {(row.type, row.tenant): row for row in rows}  # rows come by priority and id
        for lane, take, _ in takes:
            self._lanes.pop(lane, None)
            if got[lane]:
                self._served[lane] = self._round
            if got[lane] == take:  # goes to the end: the others take their turn
                self._lanes[lane] = Cursor(last[lane].priority, last[lane].id)

    def _hand_over(self, rows: list[Claimed], claimed_at: float) -> None:
        specs = {type: spec for type in {row.type for row in rows} if (spec := self._registry.get(type)) is not None}
        executions = [Execution(row, specs[row.type], claimed_at) for row in rows]  # only registered types are claimed
        self._inflight.add(executions)
        self._before_run()  # the fence is armed before the first of them starts
        self._pool.submit(executions)
