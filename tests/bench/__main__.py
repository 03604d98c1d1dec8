"""`make bench`: measures and prints JSON lines, the median of a few rounds each; progress on standard error."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import psycopg

from dispatcher import DispatcherError, __version__
from dispatcher.embedded import EmbeddedPostgres, find_binaries
from tests.bench.scenarios import SCENARIOS
from tests.bench.scenarios.measures import Measures, Size
from tests.bench.stage import BenchFailed

SERVER = {"shared_buffers": "1GB"}  # all else as PostgreSQL comes, durable
# At rest, since it has a cost; the scenario that counts statements wakes it in its own database.
STATEMENTS = {
    "shared_preload_libraries": "pg_stat_statements",
    "compute_query_id": "off",
    "pg_stat_statements.track": "none",
}
LONG = ("dask", "growth", "failover", "memory")  # take minutes: measured if they are named


def main(arguments: list[str] | None = None) -> int:
    """Runs the bench; the exit status."""
    options = _parse(arguments)
    size = replace(Size(), jobs=options.jobs, load_s=options.load_s)
    try:
        with server(options.dsn) as dsn:
            about = versions(dsn)
            for name in options.only:
                rounds = []
                for n in range(options.rounds):
                    print(f"{name}, round {n + 1} of {options.rounds}", file=sys.stderr)
                    rounds.append(play(name, dsn, size))
                for line in summarize(name, rounds):
                    print(json.dumps({**line, "jobs": size.jobs, **about}), flush=True)
    except (BenchFailed, DispatcherError, psycopg.Error) as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def play(name: str, dsn: str, size: Size) -> Measures:
    """One round of a scenario."""
    return SCENARIOS[name](dsn, size)


def summarize(name: str, rounds: list[Measures]) -> Iterator[dict[str, object]]:
    """One line a measure: the median of the rounds, and how far they lay apart."""
    for measure, (_, unit) in rounds[0].items():
        values = [one[measure][0] for one in rounds]
        yield {
            "scenario": name,
            "measure": measure,
            "value": round(statistics.median(values), 3),
            "unit": unit,
            "min": round(min(values), 3),
            "max": round(max(values), 3),
            "rounds": len(values),
        }


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measures throughput and latency.")
    parser.add_argument("--jobs", type=positive, default=Size().jobs, help="jobs to drain and to enqueue")
    parser.add_argument("--load-s", type=positive, default=60, help="how long the load of the scenario memory lasts")
    parser.add_argument("--rounds", type=positive, default=3, help="the median of so many is told")
    parser.add_argument(
        "--only",
        type=_names,
        default=[n for n in SCENARIOS if n not in LONG],
        metavar="NAME,...",
        help=f"of {', '.join(SCENARIOS)}; without it, all but {', '.join(LONG)}",
    )
    parser.add_argument(
        "--dsn", help="a server to measure instead of one of our own; databases are made and dropped in it"
    )
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    """A number from the command line."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above zero")
    return int(text)


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in SCENARIOS]:
        raise argparse.ArgumentTypeError(f"there is no scenario {unknown[0]!r}; there are {', '.join(SCENARIOS)}")
    return names


@contextmanager
def server(dsn: str | None) -> Iterator[str]:
    """The DSN of the server to measure: that one, or one of our own for as long."""
    if dsn is not None:
        yield dsn
        return
    with EmbeddedPostgres(options=SERVER | (STATEMENTS if can_count_statements() else {})) as own:
        yield own.dsn


def can_count_statements() -> bool:
    """True if the PostgreSQL found here brings pg_stat_statements."""
    root = find_binaries().parent
    return any((*root.glob("lib/pg_stat_statements.*"), *root.glob("lib/postgresql/pg_stat_statements.*")))


def versions(dsn: str) -> dict[str, object]:
    """Of all that takes part."""
    with psycopg.connect(dsn) as conn:
        server = conn.info.parameter_status("server_version")
    return {
        "dispatcher": __version__,
        "postgresql": server,
        "python": platform.python_version(),
        "psycopg": psycopg.__version__,
        "cpus": os.cpu_count(),
    }


if __name__ == "__main__":
    sys.exit(main())
