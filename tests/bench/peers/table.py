"""The contest as a table for people."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from tests.bench.scenarios.measures import Measures

COLUMNS = {
    "drain": "drain, jobs/s",
    "enqueue_bulk": "enqueue many, jobs/s",
    "enqueue_single": "one at a time, jobs/s",
    "pickup_p50": "pickup p50, ms",
    "pickup_p99": "p99, ms",
    "wal_per_job": "WAL a job, bytes",
}


def markdown(rounds: Sequence[Mapping[str, Measures]], names: Mapping[str, str], caption: str) -> str:
    """A row a peer; medians."""
    shown = {key: title for key, title in COLUMNS.items() if any(key in one for one in rounds[0].values())}
    lines = [f"| {' | '.join(('', *shown.values()))} |", f"| {' | '.join(['---'] * (len(shown) + 1))} |"]
    for peer in rounds[0]:
        cells = [names.get(peer, peer), *(_cell([one[peer] for one in rounds], key) for key in shown)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Medians of {len(rounds)} rounds; {caption}."])


def _cell(rounds: Sequence[Measures], key: str) -> str:
    if key not in rounds[0]:
        return ""
    value, unit = statistics.median(one[key][0] for one in rounds), rounds[0][key][1]
    return f"{value:.2f}" if unit == "ms" else f"{value:,.0f}"
