"""What every scenario has in common: how much of everything, and how results are told."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dispatcher.settings import Settings

THREADS = 64  # where a scenario is about many
Measures = dict[str, tuple[float, str]]
"""By name: value and unit."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything."""

    jobs: int = 100_000
    singles: int = 2_000
    clients: int = 8
    lines: int = 200_000
    pickups: int = 200
    gap_s: float = 0.02
    kills: int = 100
    stops: int = 5
    lease_s: float = Settings.model_fields["lease_duration"].default.total_seconds()
    handovers: int = 20
    pending: int = 1_000_000
    finished: tuple[int, ...] = (1_000_000, 10_000_000)
    types: int = 1_000
    tenants: int = 10_000
    spins: int = 16  # jobs that compute
    steps: int = 10_000_000  # of each: a third of a second or so
    quick: int = 5_000  # jobs that do nothing, in a pool
    workers: int = 4  # of a Dask cluster
    places: int = 100  # on all of them
    load_s: float = 60.0
    requests_s: float = 6.0
    load_per_s: int = 5_000  # for an hour of it there must be room on the disk
    idle_s: float = 10.0
    settle_s: float = 11.0  # PostgreSQL counts what an idle session did up to 10 s late


def percentile(values: list[float], percent: float) -> float:
    """The smallest value that at least so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def percentiles(values: list[float], unit: str, percents: tuple[int, ...], prefix: str = "") -> Measures:
    """Some percentiles, named p50 and the like."""
    return {f"{prefix}p{percent}": (percentile(values, percent), unit) for percent in percents}
