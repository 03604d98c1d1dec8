"""`make bench-growth`: throughput as one thing grows, all else small; JSON lines, and a picture of five panels.

Every round measures each point once, so that a change of the machine's speed meets all of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import psycopg

from dispatcher import DispatcherError
from tests.bench.__main__ import positive, server, versions
from tests.bench.picture import Point, draw
from tests.bench.scenarios.draining import Backlog, drain_fresh
from tests.bench.stage import ROOT, BenchFailed

PAYLOADS_BYTES = 100_000_000  # of all jobs of a drain: so many small ones would be as many gigabytes of large ones


@dataclass(frozen=True, slots=True)
class Sizes:
    """How far each thing grows; `jobs` are drained where it is not they that grow in number."""

    jobs: int = 50_000
    pending: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    finished: tuple[int, ...] = (1_000, 100_000, 1_000_000, 10_000_000)
    tenants: tuple[int, ...] = (1, 10, 100, 1_000, 10_000)
    threads: tuple[int, ...] = (1, 4, 16, 64, 256)
    payload: tuple[int, ...] = (64, 1_024, 4_096, 16_384, 65_536)


@dataclass(frozen=True, slots=True)
class Case:
    """A drain that makes one point."""

    axis: str
    at: int
    backlog: Backlog
    env: dict[str, str] = field(default_factory=dict)


def main(arguments: list[str] | None = None, sizes: Sizes | None = None) -> int:
    """Measures, prints and draws; the exit status."""
    options = _parse(arguments)
    sizes = replace(sizes or Sizes(), **({"jobs": options.jobs} if options.jobs else {}))
    try:
        with server(options.dsn) as dsn:
            about = versions(dsn)
            points = measure(dsn, list(cases(sizes)), options.rounds)
    except (BenchFailed, DispatcherError, psycopg.Error) as exc:
        print(f"bench-growth: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    for point in points:
        line = {"scenario": "growth", "measure": f"{point.axis}_{point.at}", "value": round(point.median, 1)}
        line |= {"unit": "1/s", "min": round(point.lowest, 1), "max": round(point.highest, 1)}
        print(json.dumps({**line, "rounds": options.rounds, "jobs": point.jobs, **about}), flush=True)
    draw(points, caption(about, sizes, options.rounds), options.out)
    print(f"drawn into {options.out}", file=sys.stderr)
    return 0


def cases(sizes: Sizes) -> Iterator[Case]:
    """All points."""
    plain = Backlog(sizes.jobs)
    for at in sizes.pending:
        yield Case("pending", at, replace(plain, count=at))
    for at in sizes.finished:
        yield Case("finished", at, replace(plain, finished=at))
    for at in sizes.tenants:
        yield Case("tenants", at, replace(plain, tenants=at))
    for at in sizes.threads:
        yield Case("threads", at, plain, {"DISPATCHER_THREADS": str(at)})
    for at in sizes.payload:
        yield Case("payload", at, replace(plain, count=max(1, min(sizes.jobs, PAYLOADS_BYTES // at)), padding=at))


def measure(dsn: str, wanted: list[Case], rounds: int) -> list[Point]:
    """Jobs a second for each case."""
    rates: list[list[float]] = [[] for _ in wanted]
    for number in range(rounds):
        for case, found in zip(wanted, rates, strict=True):
            print(f"round {number + 1} of {rounds}: {case.axis} {case.at}", file=sys.stderr, flush=True)
            found.append(drain_fresh(dsn, case.backlog, **case.env).per_second)
    return [
        Point(case.axis, case.at, case.backlog.count, statistics.median(found), min(found), max(found))
        for case, found in zip(wanted, rates, strict=True)
    ]


def caption(about: dict[str, object], sizes: Sizes, rounds: int) -> str:
    """What was measured, how, with what, and where."""
    return (
        f"Drains of {sizes.jobs:,} no-op jobs through one replica, from the first start to the last recorded outcome"
        " (as many as the axis says for pending rows, fewer for large payloads);\n"
        f"median of {rounds} rounds, bars from the lowest to the highest. pg-dispatcher {about['dispatcher']},"
        f" PostgreSQL {about['postgresql']}, Python {about['python']}, psycopg {about['psycopg']}.\n"
        f"{about['cpus']} CPUs ({_cpu_model()}), {_memory_gb()} GB of memory, shared by server, replica and bench."
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return "model unknown"


def _memory_gb() -> int:
    kilobytes = Path("/proc/meminfo").read_text().split()[1]  # MemTotal is the first
    return round(int(kilobytes) / 1024**2)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.growth", description="Measures and draws growth.")
    parser.add_argument("--jobs", type=positive, help=f"jobs to drain for a point; {Sizes().jobs} if not given")
    parser.add_argument("--rounds", type=positive, default=3, help="the median of so many is drawn")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "growth.png", help="the picture")
    parser.add_argument("--dsn", help="a server to measure instead of one of our own")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
