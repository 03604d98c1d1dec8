"""The tally of what a replica settles: counts and histograms by type and tenant, in memory until they are written.

A histogram has BUCKETS buckets with fixed bounds, each GROWTH times the one before: a quantile read from it is wrong by
less than that factor (below a millisecond by less than that millisecond), and histograms of any replicas and periods
can be added up.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

BUCKETS = 40
GROWTH = 1.6
BOUNDS = tuple(0.001 * GROWTH**i for i in range(BUCKETS))
"""The upper bound of each bucket in seconds, from a millisecond to a day; the last one also takes what is above."""

RETRIED = "retried"
ENDS = ("succeeded", "partial", "failed", "canceled", RETRIED)
"""How tries end: the final states, and a failure that is tried again."""

Key = tuple[str, str]
"""Type and tenant; the tenant '' stands for all jobs of the type."""

_INNER = BOUNDS[:-1]
_SORTED_FROM = 20  # values: from here on one sort is cheaper than a search for each, and serves all histograms


def spread(values: list[float], bounds: Sequence[float], counts: list[int]) -> None:
    """Adds the values to the counts of their buckets: counts[i] is of those up to bounds[i], the last of those above.

    May sort `values` in place.
    """
    if len(values) < _SORTED_FROM:
        for value in values:
            counts[bisect_left(bounds, value)] += 1
        return
    values.sort()
    bucket, done, last = bisect_left(bounds, values[0]), 0, len(bounds)
    while bucket < last and done < len(values):
        below = bisect_right(values, bounds[bucket], done)
        counts[bucket] += below - done
        bucket, done = bucket + 1, below
    counts[last] += len(values) - done


def quantile(counts: Sequence[float], q: float) -> float | None:
    """The value in seconds that the share `q` of the samples do not exceed; None without samples.

    Between the bounds of its bucket it is interpolated by the logarithm, in the first one, which begins at 0, evenly.
    """
    if (total := sum(counts)) <= 0:
        return None
    rank, below = q * total, 0.0
    bucket = max(i for i, count in enumerate(counts) if count > 0)  # also where rounding lets the rank lie behind it
    for i, count in enumerate(counts[:bucket]):
        if count > 0 and below + count >= rank:
            bucket = i
            break
        below += count
    part = min(1.0, max(0.0, (rank - below) / counts[bucket]))
    return float(BOUNDS[bucket] * (part if bucket == 0 else GROWTH ** (part - 1)))


class Tries:
    """Tries of one type that were recorded together."""

    __slots__ = ("durations", "ends", "tenanted", "waits")

    def __init__(self) -> None:
        self.ends: list[str] = []
        self.durations: list[float] = []
        self.waits: list[float] = []
        self.tenanted: list[tuple[str, str | None, float | None, float]] = []
        """Those of tenants once more: tenant, end if it is one to be counted, duration if it ran, wait."""

    def ended(self) -> dict[str, int]:
        """How many ended how."""
        return {end: self.ends.count(end) for end in set(self.ends)}


class Counts:
    """What was tallied of one type and tenant."""

    __slots__ = ("ended", "ran", "waited")

    def __init__(self) -> None:
        self.ended = dict.fromkeys(ENDS, 0)
        self.ran = [0] * BUCKETS
        self.waited = [0] * BUCKETS


class Tally:
    """Adds up what is settled until somebody takes it. Any thread. `noted` is told once there is something to take."""

    def __init__(self, noted: Callable[[], None] = lambda: None) -> None:
        self._noted = noted
        self._lock = threading.Lock()
        self._counts: defaultdict[Key, Counts] = defaultdict(Counts)

    def __bool__(self) -> bool:
        return bool(self._counts)

    def add(self, tries: Mapping[str, Tries]) -> None:
        """Adds a group, by type: that of a tenant counts as its own, and among all of the type."""
        with self._lock:
            first = not self._counts
            for type, group in tries.items():
                self._add_all(self._counts[type, ""], group)
                # One by one: each of very many tenants has a job or two here.
                for tenant, end, duration, wait in group.tenanted:
                    counts = self._counts[type, tenant]
                    if end is not None:
                        counts.ended[end] += 1
                    if duration is not None:
                        counts.ran[bisect_left(_INNER, duration)] += 1
                        counts.waited[bisect_left(_INNER, wait)] += 1
        if first and tries:
            self._noted()

    def take(self) -> dict[Key, Counts]:
        """All that was added since the last time."""
        with self._lock:
            taken, self._counts = self._counts, defaultdict(Counts)
        return taken

    @staticmethod
    def _add_all(counts: Counts, group: Tries) -> None:
        for end, count in group.ended().items():
            counts.ended[end] += count
        spread(group.durations, _INNER, counts.ran)
        spread(group.waits, _INNER, counts.waited)
