"""Statistics: what a replica writes of its tally, and what clients read of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dispatcher.db import Connection, array
from dispatcher.filters import checked_tenant
from dispatcher.queries.operation import Operation, Query
from dispatcher.sql import statement
from dispatcher.tally import ENDS, Counts, Key, quantile

SPANS_S = {"minute": 60, "hour": 3600, "day": 86400}


@dataclass(frozen=True, slots=True)
class Quantiles:
    """What half, 95 and 99 of a hundred tries did not exceed, in seconds; right to a factor of 1.6."""

    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class WindowStats:
    """What replicas settled within a window: jobs by how they ended, failed tries that are tried again.

    `finished` is the sum of the first four, `rate` so many a second. `duration` is a try's time in the executor, `wait`
    that from when it was due until it started; None where there was none.
    """

    succeeded: int = 0
    partial: int = 0
    failed: int = 0
    canceled: int = 0
    retried: int = 0
    finished: int = 0
    rate: float = 0.0
    duration: Quantiles | None = None
    wait: Quantiles | None = None


@dataclass(frozen=True, slots=True)
class TypeStats:
    """A type over the last minute, hour and day."""

    type: str
    minute: WindowStats
    hour: WindowStats
    day: WindowStats


def add_tallies(conn: Connection, *, replica: int, number: int, tallies: Sequence[tuple[Key, Counts]]) -> None:
    """Adds to the running minute and hour, once for each `number`, which must grow."""
    counts = [one for _, one in tallies]
    ended = {end: array([one.ended[end] for one in counts]) for end in ENDS}
    params = {
        "replica": replica,
        "number": number,
        "types": [type for (type, _), _ in tallies],
        "tenants": [tenant for (_, tenant), _ in tallies],
        "ran": [_trimmed(one.ran) for one in counts],
        "waited": [_trimmed(one.waited) for one in counts],
        **ended,
    }
    conn.execute(statement("add_tallies"), params)


def prune_tallies(conn: Connection, page: int) -> int:
    """Removes a page of what no window reaches any more; how many rows."""
    return conn.execute(statement("prune_tallies"), {"page": page}).rowcount


def read_stats(tenant: str | None) -> Operation[list[TypeStats]]:
    """The types of which something was settled within the last day, by name; raises InvalidOption."""
    rows = yield Query("read_stats", {"tenant": "" if tenant is None else checked_tenant(tenant)}, reads=True)
    windows: dict[str, dict[str, WindowStats]] = {}
    for type, name, *ended, ran, waited in rows:
        windows.setdefault(type, {})[name] = _window(SPANS_S[name], ended, ran, waited)
    return [
        TypeStats(type, **{name: found.get(name, WindowStats()) for name in SPANS_S}) for type, found in windows.items()
    ]


def _window(
    span_s: int, ended: Sequence[float], ran: Sequence[float] | None, waited: Sequence[float] | None
) -> WindowStats:
    finished = sum(ended[:4])
    return WindowStats(
        **{end: round(count) for end, count in zip(ENDS, ended, strict=True)},
        finished=round(finished),
        rate=finished / span_s,
        duration=_quantiles(ran),
        wait=_quantiles(waited),
    )


def _quantiles(counts: Sequence[float] | None) -> Quantiles | None:
    p50, p95, p99 = (quantile(counts or (), q) for q in (0.5, 0.95, 0.99))
    return None if p50 is None or p95 is None or p99 is None else Quantiles(p50, p95, p99)


def _trimmed(counts: Sequence[int]) -> str:
    """Without the zeros at the end: most are there, and they would be most of the table."""
    last = max((i for i, count in enumerate(counts) if count), default=-1)
    return array(counts[: last + 1])
