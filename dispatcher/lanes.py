"""Lanes: whose turn it is. Where pending jobs queue, from where each queue is read on, and how much to take of which.

Within a burst a lane is read on from the last job claimed, past the index entries of jobs that are gone (a cursor);
after a short while it is read from its start again, so that a job that committed late, was retried or has a better
priority is hidden no longer than that.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from itertools import islice, takewhile

from dispatcher.capacity import Capacity
from dispatcher.db import Connection
from dispatcher.executor import Registry
from dispatcher.queries import claims
from dispatcher.queries.claims import LAST_PRIORITY, START, Claimed, Cursor, FoundLane, Lane, Take
from dispatcher.turns import Turns

MIN_LANES, LANES_PER_ROOM = 64, 2  # how many lanes a claim considers: past that, sharing costs more than the jobs
TURN = 12  # jobs of a lane in its turn, where the room is for more than MIN_LANES of them: each lane has its cost
MAX_SHARED = 20_000  # rows read to share the room among lanes
READ_AGAIN_S = 0.1  # a lane is read from its start again after this, or after
READ_AGAIN_COST = 10  # times what the last full read took, whichever is longer
CUT_COST = 3  # instead of these, where lanes that were left may have jobs better than what comes now
QUICK_READ_S = 0.005  # a read that took no longer is not waited for then


class Lanes:
    """The lanes that may have a job, in the order in which they get their turn. `aging_s`: None for no aging."""

    def __init__(
        self, *, registry: Registry, capacity: Capacity, aging_s: float | None, clock: Callable[[], float]
    ) -> None:
        self._registry = registry
        self._capacity = capacity
        self._aging_s = aging_s
        self._clock = clock
        self._lanes = Turns()
        self._types: set[str] = set()  # of the lanes when they were read: there may be very many lanes
        self._foreign: set[str] = set()  # types with jobs that have no executor here
        self._waiting: set[str] | None = None  # types with a job by the latest reading; None before the first one
        self._supposed_at: float | None = None  # first since the latest reading
        self._cut: set[Lane] = set()  # left since the latest reading, and may have jobs of a worse priority
        self._cut_level = LAST_PRIORITY  # the best level that such a lane was left at
        self._mixed = False  # those have the best jobs by now: equal takes would come to very few again
        self._read_ended, self._read_took = 0.0, 0.0
        self._turn = 0
        self._queued: dict[Lane, int] = {}  # the turn at which each lane last went to the end of the queue
        self._read_again_at = 0.0
        self.held: dict[str, float] = {}
        """Types with a job and a free slot that only their rate holds back: seconds until it lets one start."""

    def clear(self) -> None:
        """Forgets everything."""
        self._lanes = Turns()
        self._waiting, self._mixed = None, False
        self._cut.clear()
        self.held = {}
        self._read_again_at = 0.0

    def read_again(self) -> None:
        """Every lane is read from its start in the next round."""
        self._read_again_at = 0.0

    def due(self) -> bool:
        """Whether to read them from their start now."""
        return self._clock() >= self._read_again_at or not self._lanes

    def due_in(self) -> float:
        """Seconds until they are to be read from their start."""
        return max(0.0, self._read_again_at - self._clock())

    @property
    def empty(self) -> bool:
        """True while no lane is known to have a job."""
        return not self._lanes

    def read(self, conn: Connection) -> None:
        """Finds every lane with a pending job."""
        began = self._clock()
        skipped = self._capacity.paused | self._foreign
        if self._aging_s is None:
            found = claims.list_lanes(conn, skipped)
        else:
            found = claims.list_aged_lanes(conn, self._aging_s, skipped)
        self._foreign |= {type for type in {one.lane.type for one in found} if self._registry.get(type) is None}
        skipped = self._capacity.paused | self._foreign
        found = [one for one in found if one.lane.type not in skipped]
        # A lane that is new comes to the end, as one does that had its turn: else a stream of new ones kept it waiting.
        self._queued = queued = {one.lane: self._queued.get(one.lane, self._turn) for one in found}
        if self._aging_s is not None:
            found = share_waiting(found, queued)
        # By priority, then who has waited longest for a turn, then age.
        found.sort(key=lambda one: (one.head[0], queued[one.lane], one.head[1]))
        self._lanes = Turns()
        for one in found:
            self._lanes.put(one.lane, one.start, math.floor(one.head[0]))
        self._types = {one.lane.type for one in found}
        self._waiting, self._supposed_at = set(self._types), None
        best = takewhile(lambda one: one.head[0] == found[0].head[0], found)
        self._mixed = bool(self._cut and found) and all(one.lane in self._cut for one in best)
        self._cut, self._cut_level = set(), LAST_PRIORITY
        self._read_ended = self._clock()
        self._read_took = took = self._read_ended - began
        self._read_again_at = self._read_ended + max(READ_AGAIN_S, READ_AGAIN_COST * took)

    def suppose(self, type: str, beside: Collection[str]) -> bool:
        """Takes it that this type has a job without a tenant, as somebody said: True if it may be claimed unseen.

        Only if none of the types `beside` it, those of its pool, waited at the latest reading, since otherwise it might
        not be that job's turn; and not for long without another reading, since a stream of such words would hide every
        other lane.
        """
        lane = Lane(type, "")
        if self._waiting is None or self._aging_s is not None or not self._waiting.isdisjoint(beside):
            return False
        if lane in self._lanes:  # its cursor may be past what was meant
            return False
        if self._supposed_at is None:
            self._supposed_at = self._clock()
        elif self._clock() - self._supposed_at >= READ_AGAIN_S:
            return False
        self._lanes.put(lane, START, 0)
        self._types.add(type)
        return True

    def begin_round(self) -> None:
        """A new round of takes: what a rate held back is noted anew."""
        self.held = {}

    def takes(self, conn: Connection, *, types: Collection[str], room: int, places: int) -> list[Take]:
        """What to claim of which lane of these types; empty where none has a job that may run.

        `places` are free right now. A type with a rate has no more than these, and one at least: what is claimed ahead
        starts a little later than its rate has it, and among many quick jobs no place may ever be seen free.
        """
        most = self._most(types, places)
        if not most:
            return []
        if self._aging_s is None and not self._mixed and (turns := self._equal_turns(room, most)):
            return turns
        while takes := self._candidates(room, most):
            if len(takes) == 1 or self._enough(takes, room):
                return takes
            depth = max(2, MAX_SHARED // len(takes))
            if self._aging_s is None:
                shares = claims.share_lanes(conn, takes, room=room, depth=depth)
            else:
                shares = claims.share_aged_lanes(conn, takes, room=room, depth=depth, aging_s=self._aging_s)
            if shares:
                return [Take(lane, take, self._lanes[lane]) for lane, take in shares]
            for one in takes:  # nothing behind their cursors any more
                self._lanes.pop(one.lane)
        return []

    def advance(self, takes: list[Take], rows: list[Claimed]) -> None:
        """Moves each lane's cursor behind what was claimed; a lane that gave less than asked for is empty for now."""
        by_priority = self._aging_s is not None
        # Plain tuples are equal to lanes, and cost a quarter of them.
        lanes = [(row.type, row.tenant, row.priority if by_priority else None) for row in rows]
        got = Counter(lanes)
        last = dict(zip(lanes, rows, strict=True))  # rows come by priority and id
        for one in takes:
            level = self._lanes.pop(one.lane)
            if got[one.lane]:
                self._turn += 1
                self._queued[one.lane] = self._turn
            if got[one.lane] == one.take:  # goes to the end: the others of its priority take their turn
                row = last[one.lane]
                self._lanes.put(one.lane, Cursor(row.priority, row.id), level if by_priority else row.priority)
            elif one.until < LAST_PRIORITY:
                self._cut.add(one.lane)
                self._cut_level = min(self._cut_level, one.until)
        if self._cut and self._lanes and (self._lanes.level > self._cut_level or takes[0].until == LAST_PRIORITY):
            pause_s = CUT_COST * self._read_took if self._read_took > QUICK_READ_S else 0.0
            self._read_again_at = min(self._read_again_at, self._read_ended + pause_s)

    def _equal_turns(self, room: int, most: Mapping[str, int]) -> list[Take]:
        """As many jobs of each of the first lanes of the best priority, without a look at the jobs; none of a worse
        priority. Where a limit forbids that, one of each, if there are lanes enough. Else empty.
        """
        slots = self._capacity.tenant_slots
        free = (one for one in self._lanes.best() if most[one[0].type] > 0 and slots(*one[0][:2]) > 0)
        lanes = list(islice(free, min(room, max(MIN_LANES, room // TURN))))
        if len(self._lanes) < 2 or not lanes:
            return []  # no turns to take, and no priority to heed
        take, of_type = room // len(lanes), Counter[str]()
        for lane, _ in lanes:
            of_type[lane.type] += take
            if of_type[lane.type] > most[lane.type] or take > slots(*lane[:2]):
                return self._single_turns(room, most)
        return [Take(lane, take, cursor, until=self._lanes.level) for lane, cursor in lanes]

    def _single_turns(self, room: int, most: Mapping[str, int]) -> list[Take]:
        room = min(room, sum(count for count in most.values() if count > 0))
        turns: list[Take] = []
        of_type: Counter[str] = Counter()
        for lane, cursor in self._lanes.best():
            if len(turns) == room:
                break
            if of_type[lane.type] < most[lane.type] and self._capacity.tenant_slots(*lane[:2]) > 0:
                of_type[lane.type] += 1
                turns.append(Take(lane, 1, cursor, until=self._lanes.level))
        return turns if len(turns) == room else []

    def _candidates(self, room: int, most: Mapping[str, int]) -> list[Take]:
        """Of very many lanes only as many as the room can use: those with the best job first, then in turn."""
        slots = self._capacity.tenant_slots
        candidates = (
            Take(lane, take, cursor, most[lane.type])
            for lane, cursor in self._lanes
            if (take := min(room, most[lane.type])) > 0 and (take := min(take, slots(lane.type, lane.tenant))) > 0
        )
        return list(islice(candidates, max(MIN_LANES, LANES_PER_ROOM * room)))

    def _most(self, types: Collection[str], places: int) -> dict[str, int]:
        """How many of each type may be claimed now; none of other types than these. Notes the types with a slot that
        their rate holds back.
        """
        now, late = self._clock(), {}
        most = Counter[str]()
        for type in self._types.intersection(types) if self._lanes else ():
            most[type] = slots = self._capacity.slots(type)
            if slots > 0 and (starts := self._capacity.starts(type, now)) is not None:
                most[type] = min(slots, starts, max(1, places))
                if not starts:
                    late[type] = self._capacity.wait_s(type, now)
        for lane, _ in self._lanes if late else ():
            if lane.type in late and self._capacity.tenant_slots(lane.type, lane.tenant) > 0:
                self.held[lane.type] = late.pop(lane.type)
        return most

    def _enough(self, takes: list[Take], room: int) -> bool:
        """Whether all of this may be claimed together."""
        of_type: Counter[str] = Counter()
        of_tenant: Counter[tuple[str, str]] = Counter()
        for one in takes:
            of_type[one.lane.type] += one.take
            of_tenant[one.lane.type, one.lane.tenant] += one.take
        return (
            of_type.total() <= room
            and all(of_type[one.lane.type] <= one.most for one in takes)
            and (
                self._aging_s is None
                or all(count <= self._capacity.tenant_slots(*lane) for lane, count in of_tenant.items())
            )
        )


def share_waiting(found: list[FoundLane], queued: Mapping[Lane, int]) -> list[FoundLane]:
    """With aging on: what the heads of a priority's lanes have gained by waiting is that priority's as a whole, and its
    lanes use it in turn. So an old backlog lifts its priority, and yet keeps no other tenant of that priority waiting.
    """
    by_priority: dict[int | None, list[FoundLane]] = {}
    for one in found:
        by_priority.setdefault(one.lane.priority, []).append(one)
    shared = []
    for lanes in by_priority.values():
        gained = sorted(one.head[0] for one in lanes)
        lanes.sort(key=lambda one: (queued[one.lane], one.head[1]))
        shared += [one._replace(head=(aged, one.head[1])) for aged, one in zip(gained, lanes, strict=True)]
    return shared
