"""`make bench-peers`: every peer in turn, again and again, so that a change of the machine's speed meets all of them.

Prints JSON lines: each measure's median with its range, and how we compare (the median of the rounds' own ratios).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg

from dispatcher import DispatcherError
from dispatcher.embedded import EmbeddedPostgres
from tests.bench.__main__ import SERVER
from tests.bench.peers.catalog import OURS, PEERS
from tests.bench.peers.contest import Contest, floor
from tests.bench.peers.install import install, version
from tests.bench.peers.table import markdown
from tests.bench.scenarios.measures import Measures
from tests.bench.stage import BenchFailed

FLOOR = "postgresql alone"
Rounds = list[dict[str, Measures]]
"""What each peer measured, round by round."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the contest; the exit status."""
    options = _parse(arguments)
    try:
        install(options.peers)
        if options.dsn:
            rounds = _rounds(options.dsn, options)
        else:
            with EmbeddedPostgres(options=SERVER, tcp=True) as server:
                rounds = _rounds(server.tcp_dsn, options)
    except (BenchFailed, DispatcherError, psycopg.Error) as exc:
        print(f"bench-peers: {exc}", file=sys.stderr)
        return 1
    except (subprocess.CalledProcessError, FileNotFoundError) as exc:
        print(f"bench-peers: the peers could not be installed: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    for line in summarize(rounds):
        print(json.dumps(line), flush=True)
    if options.markdown:
        names = {name: f"{name} {version(name)}" for name in options.peers}
        print(
            markdown(rounds, names, f"{options.jobs:,} jobs; Python {platform.python_version()}; {os.cpu_count()} CPUs")
        )
    return 0


def summarize(rounds: Rounds) -> Iterator[dict[str, object]]:
    """One line a peer and measure."""
    for peer, measures in rounds[0].items():
        for measure, (_, unit) in measures.items():
            values = [one[peer][measure][0] for one in rounds]
            line: dict[str, object] = {"peer": peer, "measure": measure, "unit": unit, "rounds": len(values)}
            line |= {"value": _round(statistics.median(values)), "min": _round(min(values)), "max": _round(max(values))}
            if peer != OURS and all(measure in one.get(OURS, {}) for one in rounds):
                ratios = [one[OURS][measure][0] / one[peer][measure][0] for one in rounds]
                line["ours_to_theirs"] = _round(statistics.median(ratios))
            yield line


def _rounds(dsn: str, options: argparse.Namespace) -> Rounds:
    rounds: Rounds = []
    for number in range(options.rounds):
        measured: dict[str, Measures] = {FLOOR: {"drain": (floor(dsn), "1/s")}}
        for name in options.peers:
            print(f"round {number + 1} of {options.rounds}: {name}", file=sys.stderr, flush=True)
            measured[name] = _one(name, dsn, options)
        rounds.append(measured)
    return rounds


def _one(name: str, dsn: str, options: argparse.Namespace) -> Measures:
    measures: Measures = {}
    for measure in options.only:
        with tempfile.TemporaryDirectory(prefix="bench-peers-") as folder, Contest(name, dsn, Path(folder)) as contest:
            match measure:
                case "drain":
                    measures |= contest.drain(options.jobs)
                case "single":
                    measures |= contest.single()
                case _:
                    measures |= contest.pickup()
    return measures


def _round(value: float) -> float:
    return round(value, 3 if value < 100 else 0)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.peers", description="Measures peers beside this project."
    )
    parser.add_argument("peers", nargs="*", default=list(PEERS), metavar="PEER", help=", ".join(PEERS))
    parser.add_argument("--jobs", type=int, default=20_000, help="jobs to enqueue and to drain")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", type=lambda text: text.split(","), default=["drain", "single", "pickup"])
    parser.add_argument("--dsn", help="a server by TCP whose role may create databases, instead of one of our own")
    parser.add_argument("--markdown", action="store_true", help="a table as well")
    options = parser.parse_args(arguments)
    for given, known in ((options.peers, PEERS), (options.only, ("drain", "single", "pickup"))):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"there is no {unknown[0]!r}; there are {', '.join(known)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
