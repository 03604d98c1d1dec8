"""The picture of growth: a panel for each thing that grows, jobs a second upwards."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

BLUE = "#0072B2"  # of Okabe and Ito's palette, which the colour-blind can tell apart
GREY = "#595959"
COLUMNS = 3


@dataclass(frozen=True, slots=True)
class Point:
    """Jobs a second where `axis` has grown to `at`, over some rounds; `jobs` were drained each time."""

    axis: str
    at: int
    jobs: int
    median: float
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True)
class Panel:
    """How an axis is shown."""

    title: str
    label: str
    number: Callable[[int], str]
    log_rate: bool = False


def short(number: int) -> str:
    """10000 is 10k, 1000000 is 1M."""
    for size, letter in ((1_000_000, "M"), (1_000, "k")):
        if number >= size:
            return f"{number / size:g}{letter}"
    return str(number)


def short_bytes(number: int) -> str:
    """4096 is 4 KiB."""
    return f"{number // 1024} KiB" if number >= 1024 else f"{number} B"


PANELS = {
    "pending": Panel("Pending rows", "jobs that wait at the start", short),
    "finished": Panel("Finished rows", "rows of ended jobs in the table", short),
    "tenants": Panel("Tenants", "tenants that the jobs belong to", short),
    "threads": Panel("Threads", "worker threads of the replica", short),
    "payload": Panel("Payload", "size of each job's payload", short_bytes, log_rate=True),
}


def draw(points: list[Point], caption: str, path: Path) -> None:
    """Writes a PNG."""
    figure = Figure(figsize=(12, 7.6), dpi=110, layout="constrained")
    figure.suptitle("Throughput as one thing grows", fontsize=15, fontweight="bold")
    rows = -(-len(PANELS) // COLUMNS)
    top = 1.1 * max(point.highest for point in points)
    for place, (name, panel) in enumerate(PANELS.items(), 1):
        axes = figure.add_subplot(rows, COLUMNS, place)
        _draw_panel(axes, panel, [point for point in points if point.axis == name], top)
    figure.supxlabel(caption, fontsize=8.5, color=GREY, x=0.01, ha="left", multialignment="left")
    figure.savefig(path)


def _draw_panel(axes: Axes, panel: Panel, points: list[Point], top: float) -> None:
    at = [point.at for point in points]
    medians = [point.median for point in points]
    below = [point.median - point.lowest for point in points]
    above = [point.highest - point.median for point in points]
    axes.errorbar(at, medians, yerr=[below, above], fmt="o-", color=BLUE, ecolor=BLUE, capsize=4, linewidth=1.5)
    axes.set_title(panel.title, fontsize=12)
    axes.set_xlabel(panel.label)
    axes.set_ylabel("jobs per second" + (" (log scale)" if panel.log_rate else ""))
    axes.set_xscale("log")
    axes.set_xticks(at, [panel.number(one) for one in at])
    axes.set_xticks([], minor=True)
    if panel.log_rate:
        axes.set_yscale("log")
        axes.set_ylim(
            10 ** math.floor(math.log10(min(point.lowest for point in points))), 10 ** math.ceil(math.log10(top))
        )
    else:
        axes.set_ylim(0, top)  # the same in all of these panels: heights can be compared
    axes.yaxis.set_major_formatter(lambda rate, _: f"{rate:,.0f}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(visible=True, which="major", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
