"""The schedule of faults: the same seed gives the same faults at the same times.

How often a kind comes is its weight. Some last: then the end lies in the plan as well. Two of them may overlap, unless
they are about the same thing: the server is down once at a time, and so is each place's network.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

# What replicas of a storm are told (places.py): the durations below are chosen around these.
LEASE_S = 1.0
ORPHAN_AFTER_S = 4.0

PLACES = 3
LEADER = -1  # wherever the leader is at that moment
SESSIONS = (
    "lease",
    "completer",
    "listener",
    "stager",
    "rescuer",
    "scheduler",
    "linker",
    "pruner",
    "gauges",
    "teller",
    "",
)
FIRST_S = 2.0  # the replicas have started by then
GAP_S = (0.1, 3.0)
CALM_S = 4.0  # at the end of the plan, so that the last fault too has been gone through


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault: how often it comes, how long it lasts, and what can have only one fault at a time."""

    name: str
    weight: int
    lasts_s: tuple[float, float] = (0.0, 0.0)
    place: bool = True  # it happens at a place, not everywhere
    excludes: str = ""


KINDS = (
    Kind("kill", 6),
    Kind("stop_below_the_lease", 3, (0.2, 0.8 * LEASE_S), excludes="process"),
    Kind("stop_past_the_lease", 4, (1.5 * LEASE_S, 0.7 * ORPHAN_AFTER_S), excludes="process"),
    Kind("stop_past_orphan_after", 4, (1.1 * ORPHAN_AFTER_S, 1.8 * ORPHAN_AFTER_S), excludes="process"),
    Kind("end_sessions", 8, place=False),
    Kind("postgres_kill", 2, (0.1, 1.5), place=False, excludes="server"),
    Kind(
        "postgres_kill_past_orphan_after",
        1,
        (1.05 * ORPHAN_AFTER_S, 1.4 * ORPHAN_AFTER_S),
        place=False,
        excludes="server",
    ),
    Kind("postgres_restart", 1, (0.0, 0.5), place=False, excludes="server"),
    Kind("network_cut", 3, (0.3, 1.5 * ORPHAN_AFTER_S), excludes="network"),
    Kind("network_silent", 3, (0.3, 1.5 * ORPHAN_AFTER_S), excludes="network"),
    Kind("network_deaf", 2, (0.3, 1.5 * ORPHAN_AFTER_S), excludes="network"),
    Kind("network_mute", 2, (0.3, 1.5 * ORPHAN_AFTER_S), excludes="network"),
    Kind("network_half_open", 3, excludes="network"),
    Kind("network_slow", 2, (2.0, 6.0), excludes="network"),
    Kind("backend_stopped", 2, (0.5, 3 * LEASE_S), place=False, excludes="server"),  # a server does not start beside it
    Kind("connections_exhausted", 2, (1.0, 5.0), place=False, excludes="server"),
    Kind("clock_stepped", 2, (2.0, 10.0), excludes="clock"),
    Kind("rows_locked", 3, (0.5, 4.0), place=False),
    Kind("terminate", 4),
    Kind("rolling_restart", 1, place=False),
    Kind("migrate", 2, place=False),
    Kind("resign", 2, place=False),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: from `at_s` on, seconds after the start, for `lasts_s`; `detail` is a number that some kinds use."""

    number: int
    at_s: float
    lasts_s: float
    kind: str
    place: int | None  # of PLACES, or LEADER; None: everywhere
    detail: int

    @property
    def until_s(self) -> float:
        """When it is over."""
        return self.at_s + self.lasts_s

    def __str__(self) -> str:
        where = "" if self.place is None else f" at {'the leader' if self.place == LEADER else self.place}"
        return f"{self.at_s:6.1f} s  {self.kind}{where}" + (f" for {self.lasts_s:.1f} s" if self.lasts_s else "")


def plan(seed: int, duration_s: float) -> Sequence[Fault]:
    """The faults of a storm, in the order of their begin; all are over CALM_S before its end."""
    rng = random.Random(seed)
    faults: list[Fault] = []
    busy: dict[tuple[str, int | None], float] = {}
    at_s = FIRST_S
    while True:
        at_s += rng.uniform(*GAP_S)
        [kind] = rng.choices(KINDS, [kind.weight for kind in KINDS])
        place = (LEADER if rng.random() < 0.5 else rng.randrange(PLACES)) if kind.place else None
        lasts_s, detail = rng.uniform(*kind.lasts_s), rng.randrange(1000)
        if at_s + lasts_s > duration_s - CALM_S:
            return faults
        keys = _keys(kind, place)
        if any(busy.get(key, 0.0) > at_s for key in keys):
            continue
        busy |= dict.fromkeys(keys, at_s + lasts_s + 0.2)
        faults.append(Fault(len(faults), round(at_s, 3), round(lasts_s, 3), kind.name, place, detail))


def _keys(kind: Kind, place: int | None) -> list[tuple[str, int | None]]:
    """What nothing else of its sort may touch meanwhile: any place may be the leader's."""
    places = range(PLACES) if place == LEADER else [place]
    return [(kind.excludes, each) for each in places] if kind.excludes else []
