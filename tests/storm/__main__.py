"""One storm from the command line: `make storm SEED=n MINUTES=m`. Exit status 0 if every promise was kept."""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from tests.storm.storm import Report, run

MOST_OF_A_RULE = 10  # one fault of the product may breach a rule a hundred times


def main() -> int:
    """Runs it and tells what was seen."""
    parser = argparse.ArgumentParser(prog="python -m tests.storm", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the schedule of faults and of the work")
    parser.add_argument("--minutes", type=float, default=1.0, help="how long faults come")
    parser.add_argument("--keep", type=Path, help="where logs and events stay; else they are kept after a failure only")
    parser.add_argument("--json", action="store_true", help="the figures as a line of JSON")
    parser.add_argument("--quiet", action="store_true", help="do not tell of each fault")
    options = parser.parse_args()
    logging.basicConfig(
        level=logging.WARNING if options.quiet else logging.INFO, format="%(message)s", stream=sys.stderr
    )
    folder = options.keep or Path(tempfile.mkdtemp(prefix=f"storm-{options.seed}-", dir="/tmp"))
    folder.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    began = time.monotonic()
    try:
        report = run(options.seed, options.minutes * 60, folder)
    except KeyboardInterrupt:
        _forget(folder, options.keep)
        print("\nstopped before there was a verdict; nothing runs any more", file=sys.stderr)
        return 130
    tell(report, time.monotonic() - began, as_json=options.json)
    if report.breaches:
        print(f"Logs, events and what the database had: {folder}", file=sys.stderr)
        return 1
    _forget(folder, options.keep)
    return 0


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _forget(folder: Path, keep: Path | None) -> None:
    if keep is None:
        shutil.rmtree(folder)


def tell(report: Report, took_s: float, *, as_json: bool) -> None:
    """The figures, and each breach on a line of its own."""
    if as_json:
        print(json.dumps({"seconds": round(took_s), **report.figures, "breaches": report.breaches}))
        return
    for name, value in report.figures.items():
        print(f"{name.replace('_', ' '):>24}  {value}")
    by_rule = itertools.groupby(report.breaches, lambda breach: breach.partition(":")[0])
    for rule, breaches in by_rule:
        for breach in itertools.islice(breaches, MOST_OF_A_RULE):
            print(f"BREACH  {breach}")
        if more := sum(1 for _ in breaches):
            print(f"BREACH  {rule}: and {more} more")
    print(f"{'every promise was kept' if not report.breaches else f'{len(report.breaches)} breaches'}, {took_s:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
