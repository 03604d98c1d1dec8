"""`make bench-growth`: jobs a second as something grows, one picture for all of it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg

from dispatcher import DispatcherError, __version__
from dispatcher.embedded import EmbeddedPostgres
from tests.bench.__main__ import SERVER
from tests.bench.scenarios.draining import Backlog, drain_fresh, drain_part
from tests.bench.stage import ROOT, BenchFailed

PICTURE = ROOT / "docs" / "growth.png"
JOBS = 50_000
SMALL = 5_000  # jobs where each is large


@dataclass(frozen=True, slots=True)
class Axis:
    """What grows, by how much, and how a point is measured: jobs a second."""

    title: str
    points: tuple[int, ...]
    measure: Callable[[str, int, int], float]


def pending(dsn: str, jobs: int, count: int) -> float:
    """So many wait; the first `jobs` of them are timed."""
    backlog = Backlog(max(count, jobs))
    return drain_part(dsn, backlog, jobs) if count > jobs else drain_fresh(dsn, backlog).per_second


def finished(dsn: str, jobs: int, count: int) -> float:
    """So many rows of ended jobs are kept."""
    return drain_fresh(dsn, Backlog(jobs, finished=count)).per_second


def tenants(dsn: str, jobs: int, count: int) -> float:
    """The jobs are of so many tenants."""
    return drain_fresh(dsn, Backlog(jobs, tenants=count)).per_second


def threads(dsn: str, jobs: int, count: int) -> float:
    """The replica has so many threads."""
    return drain_fresh(dsn, Backlog(jobs), DISPATCHER_THREADS=str(count)).per_second


def payload(dsn: str, jobs: int, size: int) -> float:
    """Each payload has so many characters."""
    return drain_fresh(dsn, Backlog(min(jobs, SMALL), padding=size)).per_second


AXES = (
    Axis("pending jobs", (50_000, 200_000, 500_000, 1_000_000), pending),
    Axis("finished jobs kept", (0, 10_000, 100_000, 1_000_000, 5_000_000), finished),
    Axis("tenants", (1, 10, 100, 1_000, 10_000), tenants),
    Axis("threads", (1, 4, 16, 64), threads),
    Axis(f"payload, bytes ({SMALL:,} jobs)", (0, 256, 1_024, 4_096, 16_384, 65_536), payload),
)


def main(arguments: list[str] | None = None) -> int:
    """Measures and draws; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.growth", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=JOBS)
    parser.add_argument(
        "--largest", type=int, default=max(max(axis.points) for axis in AXES), help="no point past this"
    )
    parser.add_argument("--output", type=Path, default=PICTURE)
    parser.add_argument("--dsn", help="a server to measure instead of one of our own")
    options = parser.parse_args(arguments)
    try:
        if options.dsn:
            lines = list(measure(options.dsn, options))
        else:
            with EmbeddedPostgres(options=SERVER) as server:
                lines = list(measure(server.dsn, options))
    except (BenchFailed, DispatcherError, psycopg.Error) as exc:
        print(f"bench-growth: {exc}", file=sys.stderr)
        return 1
    draw(lines, options.output)
    return 0


def measure(dsn: str, options: argparse.Namespace) -> Iterator[dict[str, object]]:
    """A line a point: its median with its range. Round by round, so that the machine's moods meet all points."""
    points = [(axis, point) for axis in AXES for point in axis.points if point <= options.largest]
    rates: dict[tuple[str, int], list[float]] = {}
    for number in range(options.rounds):
        for axis, point in points:
            print(f"round {number + 1} of {options.rounds}: {point:,} {axis.title}", file=sys.stderr, flush=True)
            rates.setdefault((axis.title, point), []).append(axis.measure(dsn, options.jobs, point))
    with psycopg.connect(dsn) as conn:
        server = (conn.info.parameter_status("server_version") or "").split()[0]
    for (title, point), values in rates.items():
        line: dict[str, object] = {"axis": title, "point": point, "rounds": len(values), "postgresql": server}
        line |= {"value": round(statistics.median(values)), "min": round(min(values)), "max": round(max(values))}
        print(json.dumps(line), flush=True)
        yield line


def draw(lines: Sequence[dict[str, object]], path: Path) -> None:
    """One panel an axis. Median and range; the scale begins at zero, so that flat looks flat."""
    import matplotlib as mpl  # noqa: PLC0415 - only who draws needs it
    from matplotlib import pyplot as plt  # noqa: PLC0415

    mpl.use("Agg")
    titles = list(dict.fromkeys(str(line["axis"]) for line in lines))
    figure, panels = plt.subplots(1, len(titles), figsize=(3.2 * len(titles), 3.4), sharey=True, squeeze=False)
    for panel, title in zip(panels[0], titles, strict=True):
        own = [line for line in lines if line["axis"] == title]
        xs = [_number(line, "point") for line in own]
        medians = [_number(line, "value") for line in own]
        below = [_number(line, "value") - _number(line, "min") for line in own]
        above = [_number(line, "max") - _number(line, "value") for line in own]
        panel.errorbar(xs, medians, yerr=[below, above], marker="o", color="#0072B2", ecolor="#999999", capsize=3)
        panel.set_xscale(
            "symlog", linthresh=min((x for x in xs if x), default=1)
        )  # a logarithm that has a place for zero
        panel.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        panel.set_xticks(xs, minor=False)
        panel.tick_params(axis="x", labelrotation=45)
        panel.set_xlabel(title)
        panel.grid(visible=True, alpha=0.3)
    panels[0][0].set_ylim(0, 1.05 * max(_number(line, "max") for line in lines))
    panels[0][0].set_ylabel("no-op jobs a second")
    panels[0][0].yaxis.set_major_formatter(lambda y, _: f"{y:,.0f}")
    figure.suptitle("One replica, as something grows")
    figure.text(
        0.01,
        0.01,
        f"pg-dispatcher {__version__}, PostgreSQL {lines[0]['postgresql']}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores shared by server, replica and bench; median and range of {lines[0]['rounds']} rounds",
        fontsize=8,
        color="#555555",
    )
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(path, dpi=110)


def _number(line: dict[str, object], key: str) -> float:
    value = line[key]
    assert isinstance(value, int)
    return float(value)


if __name__ == "__main__":
    sys.exit(main())
