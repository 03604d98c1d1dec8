"""`make demo`: a real import and 500 small jobs, through a leader that is killed half-way; then the checks.

A PostgreSQL of its own, two replicas as real processes, and a witness outside the database (demo_jobs.py). Exit
status 0 when every check holds. Nothing is left behind, after Ctrl-C neither.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from dispatcher import Client, DispatcherError, State, demo_flights, migrate
from dispatcher.demo_fleet import Fleet
from dispatcher.demo_jobs import (
    EVENTS,
    LIMIT,
    MONTH,
    TYPE,
    close_cut_off,
    most_at_once,
    overlapping_attempts,
    read_runs,
)
from dispatcher.embedded import EmbeddedPostgres

MONTHS = range(1, 13)
FOLLOW = (
    1 + 3 + len(MONTHS)
)  # jobs that follow the import: an export; a fan_out, its batch and what wakes it; the months
KILL_AT = 40.0  # percent of the import
LATE = 4 * LIMIT  # small jobs that come just before the kill: on a slow machine the others may be done by then
PATIENCE_S = 40.0  # for one step: nothing here should take a tenth of it
LOOK_EVERY_S = 0.005  # what other processes do to a database offers nothing to wait on
FAILOVER_MS = 2000  # a busy machine may take long; usually it is a twentieth of it
T = TypeVar("T")


class DemoFailed(Exception):
    """The story could not go on; the message says where."""


class Paper:
    """What the user sees: a line an event with the seconds since the start, then a line a check."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._colors = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self.failed: list[str] = []

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start

    def event(self, text: str) -> None:
        """Something happened."""
        print(f"{self.seconds:7.2f} s  {text}", flush=True)

    def check(self, name: str, holds: bool, detail: str) -> None:
        """Something is as it should be, or not."""
        if not holds:
            self.failed.append(name)
        word = self._paint("ok    ", "32") if holds else self._paint("FAILED", "1;31")
        print(f"  {word}  {name}: {detail}", flush=True)

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colors else text


class Demo:
    """One run, step by step."""

    def __init__(self, paper: Paper, db: Client, fleet: Fleet, dsn: str, folder: Path) -> None:
        self._paper = paper
        self._db = db
        self._fleet = fleet
        self._dsn = dsn
        self._csv = folder / "flights.csv"
        self._events = folder / "events"

    def run(self, rows: int, jobs: int) -> None:
        """The story, and the checks at its end."""
        leader = self._elect()
        late = min(jobs, LATE)
        import_id, small_ids = self._enqueue(rows, jobs, late)
        export_id, months_id = self._enqueue_after(import_id)
        progress = self._pass_the_middle(import_id)
        small_ids += self._enqueue_small(jobs - late, jobs)
        killed = self._fleet.kill(leader)
        self._paper.event(f"kill -9 of the leader (pid {leader}), at {progress:.0f} % of the import")
        heir, first_ms = self._wait_for_heir(leader, killed)
        kept = demo_flights.count_rows(self._dsn)
        self._paper.event(f"{kept:,} rows of the import are committed and stay")
        self._db.wait([import_id, *small_ids], PATIENCE_S)
        done = self._db.get(import_id)
        self._paper.event(f"all {1 + jobs} jobs have ended; the import in attempt {done.attempt}")
        self._db.wait([export_id, months_id], PATIENCE_S)
        self._paper.event("what was to follow from the import is done: an export, and a sum for each month")
        status = self._fleet.stop(heir)
        self._paper.event("SIGTERM to the replica that is left: it has stopped")
        self._judge(leader, killed, first_ms, kept, rows, import_id, small_ids)
        self._judge_what_followed(export_id, months_id, rows)
        self._judge_states(1 + len(small_ids) + FOLLOW)
        left = len(self._db.replicas())
        self._paper.check(
            "clean stop", status == 0 and not left, f"exit status {status}, {left} replicas left in the database"
        )

    def _elect(self) -> int:
        pids = {self._fleet.start(), self._fleet.start()}
        leader = self._until("a leader", self._db.leader)
        self._paper.event(f"replica {leader.replica} (pid {leader.pid}) is elected, term {leader.term}")
        self._until("the stand-by", lambda: pids == {one.pid for one in self._db.replicas() if one.alive})
        self._paper.event("replica 2 stands by" if leader.replica == 1 else "replica 1 stands by")
        if leader.pid not in pids:
            raise DemoFailed("somebody else leads")
        return leader.pid

    def _enqueue(self, rows: int, jobs: int, late: int) -> tuple[int, list[int]]:
        payload = {"path": self._csv.name, "table": "flights", "null": "NA", "batch_rows": max(100, rows // 150)}
        import_id = self._db.enqueue("bulk_import", payload)
        ids = self._enqueue_small(0, jobs - late)
        self._until("the import's start", lambda: self._db.get(import_id).state is State.RUNNING)
        self._paper.event(f"the import of {rows:,} rows runs; beside it {jobs} small jobs, at most {LIMIT} at once")
        return import_id, ids

    def _enqueue_small(self, first: int, end: int) -> list[int]:
        return self._db.enqueue_many(TYPE, ({"n": n} for n in range(first, end)))

    def _enqueue_after(self, import_id: int) -> tuple[int, int]:
        export = {"query": "flights_of_a_carrier", "params": {"carrier": demo_flights.CARRIER}, "gzip": True}
        months = {"type": MONTH, "items": [{"month": month} for month in MONTHS]}
        return (
            self._db.enqueue("export_query", export, after=import_id),
            self._db.enqueue("fan_out", months, after=import_id),
        )

    def _pass_the_middle(self, import_id: int) -> float:
        def progress() -> float | None:
            job = self._db.get(import_id)
            if job.state is not State.RUNNING:
                raise DemoFailed(f"the import was {job.state} before it could be cut off: {job.errors[-1:]}")
            return job.progress if job.progress >= KILL_AT else None

        return self._until(f"{KILL_AT:.0f} % of the import", progress)

    def _wait_for_heir(self, leader: int, killed: float) -> tuple[int, float]:
        """The stand-by that leads now, and milliseconds from the kill until it ran its first job."""
        runs = self._until(
            "the stand-by's first job", lambda: [run for run in read_runs(self._events) if run.pid != leader]
        )
        first_ms = (runs[0].start - killed) * 1000
        heir = self._until("the new leader", self._db.leader)
        self._paper.event(
            f"replica {heir.replica} leads, term {heir.term}: its first claim ran {first_ms:.0f} ms after the kill"
        )
        return runs[0].pid, first_ms

    def _judge(
        self, leader: int, killed: float, first_ms: float, kept: int, rows: int, import_id: int, small_ids: list[int]
    ) -> None:
        paper = self._paper
        print("\nChecks")
        paper.check("failover", first_ms < FAILOVER_MS, f"{first_ms:.0f} ms from kill -9 to the stand-by's first job")
        witnessed = read_runs(self._events)
        cut_off = [run for run in witnessed if run.end is None]
        runs = close_cut_off(witnessed, pid=leader, died=killed)
        most = most_at_once(runs)
        paper.check("limit", most <= LIMIT, f"{most} of at most {LIMIT} at once, at every instant of {len(runs)} runs")
        twice = overlapping_attempts(runs)
        paper.check(
            "no overlap",
            not twice,
            f"{len(cut_off)} runs were cut off and ran again, none beside itself {twice or ''}".rstrip(),
        )
        missing, added = demo_flights.differences(self._dsn, self._csv)
        total = demo_flights.count_rows(self._dsn)
        exact = total == rows and missing == added == 0
        paper.check("rows", exact, f"{total:,} of {rows:,}, {missing} missing, {added} too many, compared line by line")
        done = self._db.get(import_id)
        resumed = done.attempt == 2 and 0 < kept < rows
        paper.check("checkpoint", resumed, f"attempt {done.attempt} went on after {kept:,} rows")
        ended = {run.job for run in runs if run.end is not None and run not in cut_off}
        lost = sorted(set(small_ids) - ended)
        paper.check(
            "nothing lost",
            not lost,
            f"{len(ended)} of {len(small_ids)} small jobs ran to their end {lost[:5] or ''}".rstrip(),
        )

    def _judge_what_followed(self, export_id: int, months_id: int, rows: int) -> None:
        export = self._db.result(export_id)
        with gzip.open(unquote(urlsplit(export["url"]).path), "rt", encoding="utf-8", newline="") as file:
            lines = sum(1 for _ in csv.reader(file)) - 1
        wanted = demo_flights.count_of(self._dsn, "carrier", demo_flights.CARRIER)
        self._paper.check(
            "export",
            lines == export["rows"] == wanted,
            f"{lines:,} of {wanted:,} rows of a carrier, {export['bytes']:,} bytes",
        )
        months = self._db.result(months_id)["results"]
        total = sum(month["flights"] for month in months)
        in_order = [month["month"] for month in months] == list(MONTHS)
        self._paper.check(
            "fan-out",
            in_order and total == rows,
            f"{len(months)} months summed up in processes, {total:,} flights in all",
        )

    def _judge_states(self, wanted: int) -> None:
        states = Counter(str(job.state) for job in self._db.list(limit=10 * wanted))
        shown = ", ".join(f"{count} {state}" for state, count in states.items())
        self._paper.check("final states", states == {"succeeded": wanted}, shown)

    def _until(self, what: str, look: Callable[[], T | None]) -> T:
        """What `look` answers once it is true."""
        deadline = time.monotonic() + PATIENCE_S
        while not (answer := look()):
            if died := self._fleet.died():
                raise DemoFailed(f"a replica ended by itself (pid {died[0]}) before {what}")
            if time.monotonic() > deadline:
                raise DemoFailed(f"no sign of {what} within {PATIENCE_S:.0f} s")
            time.sleep(LOOK_EVERY_S)
        return answer


def main(arguments: list[str] | None = None) -> int:
    """Runs the demo; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m dispatcher.demo", description="Jobs run on, whatever dies.")
    parser.add_argument("--file", type=Path, help="another CSV (or zip of one) with the columns of flights.csv")
    parser.add_argument("--jobs", type=int, default=500, help="how many small jobs run beside the import")
    options = parser.parse_args(arguments)
    file = options.file or demo_flights.find_data_set()
    if file is None:
        print(demo_flights.MISSING, file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        return _run(file, options.jobs)
    except KeyboardInterrupt:
        print("\nstopped; nothing is left behind", file=sys.stderr)
        return 130
    except (DispatcherError, OSError) as exc:
        print(f"the demo cannot run: {exc}", file=sys.stderr)
        return 1


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run(file: Path, jobs: int) -> int:
    print(f"A real import and {jobs} small jobs, through a leader that is killed half-way.\n", flush=True)
    paper = Paper()
    with tempfile.TemporaryDirectory(prefix="dispatcher-demo-") as name, EmbeddedPostgres() as server:
        folder = Path(name)
        migrate.migrate(server.dsn)
        paper.event("a PostgreSQL of our own is up, with the dispatcher's schema")
        rows = demo_flights.unpack(file, folder / "flights.csv")
        demo_flights.create_table(server.dsn)
        (folder / "queries.toml").write_text(demo_flights.QUERIES, encoding="utf-8")
        settings = {
            "DISPATCHER_EXECUTORS": "dispatcher.demo_jobs",
            "DISPATCHER_IMPORT_ROOT": name,
            "DISPATCHER_QUERIES": str(folder / "queries.toml"),
            "DISPATCHER_RESULT_STORE": str(folder / "store"),
            "DISPATCHER_PROCESSES": "2",
            EVENTS: str(folder / "events"),
            "RUNTIME_DIRECTORY": name,  # where systemd would have the replicas' lock files
        }
        with Fleet(server.dsn, folder, settings) as fleet, Client(server.dsn) as db:
            try:
                Demo(paper, db, fleet, server.dsn, folder).run(rows, jobs)
            except (DemoFailed, DispatcherError, TimeoutError) as exc:
                print(f"\nFAILED after {paper.seconds:.1f} s: {exc}\n{fleet.logs()}", file=sys.stderr)
                return 1
            if paper.failed:
                print(f"\nFAILED: {', '.join(paper.failed)}\n{fleet.logs()}", file=sys.stderr)
                return 1
    print(f"\nAll checks hold, after {paper.seconds:.1f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
