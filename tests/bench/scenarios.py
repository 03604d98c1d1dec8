"""The scenarios. Each plays on a stage of its own, answers measures, and checks that what it measured did happen."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench import jobs
from tests.bench.floor import drain_floor
from tests.bench.stage import BenchFailed, Stage

Measures = dict[str, tuple[float, str]]
"""By name: value and unit."""

CHUNK = 10_000  # payloads in one call of enqueue_many
TAIL = 5_000  # the last ids, looked at often; the whole table once these are done


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything."""

    jobs: int = 100_000
    singles: int = 2_000
    pickups: int = 200
    gap_s: float = 0.02
    kills: int = 10
    idle_s: float = 10.0
    settle_s: float = 11.0  # PostgreSQL counts what an idle session did up to 10 s late


def drain(stage: Stage, size: Size) -> Measures:
    """No-op jobs that wait already, one replica: from the first start until nothing is unfinished."""
    _enqueue_many(stage, size.jobs)
    replica = stage.start_replica(**{jobs.LAST: str(size.jobs)})
    stage.until("the last job", lambda: [note for note in stage.notes() if note[0] == "last"])
    done_at = stage.until("the end of all jobs", lambda: _all_done(stage))
    stage.stop_replica(replica)
    notes = {note[0]: note[1] for note in stage.notes()}
    if sorted(map(int, notes["ran"].split(","))) != list(range(size.jobs)):
        raise BenchFailed("some job ran twice or never")
    recorded = stage.ask("select count(*) from dispatcher.jobs where state = 'succeeded' and attempt = 1")
    if recorded != size.jobs:
        raise BenchFailed(f"{recorded} of {size.jobs} jobs are recorded as succeeded in their first attempt")
    rate = size.jobs / (done_at - float(notes["first"]))
    floor = drain_floor(stage.dsn, size.jobs)
    return {
        "jobs_per_second": (rate, "1/s"),
        "floor_jobs_per_second": (floor, "1/s"),
        "share_of_floor": (rate / floor, "1"),
    }


def pickup(stage: Stage, size: Size) -> Measures:
    """An idle system, a job now and then: from the call of enqueue to the executor's first line."""
    stage.start_replica()
    stage.lead()
    _mark_and_wait(stage, -1)  # connections are open and statements prepared, as in any system that runs
    asked: dict[int, float] = {}
    began = time.monotonic()
    for n in range(size.pickups):
        time.sleep(max(0.0, began + n * size.gap_s - time.monotonic()))  # the pace is what is wanted
        asked[n] = time.monotonic()
        stage.client.enqueue(jobs.MARK, {"n": n})
    stage.until("all jobs", lambda: len(stage.notes()) == size.pickups + 1)
    started = {int(note[0]): float(note[1]) for note in stage.notes()}
    return _percentiles([(started[n] - at) * 1000 for n, at in asked.items()], "ms", (50, 95, 99))


def failover(stage: Stage, size: Size) -> Measures:
    """kill -9 of the leader while a job waits: from the kill to the first line of that job on the next leader."""
    stage.start_replica()
    stage.start_replica()
    times_ms = []
    for n in range(size.kills):
        pid = stage.lead()
        _mark_and_wait(stage, 2 * n)
        leader = stage.find(pid)
        leader.send_signal(signal.SIGSTOP)  # for an instant, so that it is not the one who claims what comes now
        stage.client.enqueue(jobs.MARK, {"n": 2 * n + 1})
        leader.kill()
        killed_at = time.monotonic()
        times_ms.append((_wait_for(stage, 2 * n + 1) - killed_at) * 1000)
        leader.wait()
        stage.start_replica()
    return _percentiles(times_ms, "ms", (50, 99))


def enqueue(stage: Stage, size: Size) -> Measures:
    """One connection: jobs one by one, each committed; and many in a call."""
    stage.client.enqueue(jobs.NOOP, {"n": 0})
    began = time.monotonic()
    for n in range(size.singles):
        stage.client.enqueue(jobs.NOOP, {"n": n})
    single = size.singles / (time.monotonic() - began)
    began = time.monotonic()
    _enqueue_many(stage, size.jobs)
    many = size.jobs / (time.monotonic() - began)
    if stage.ask("select count(*) from dispatcher.jobs") != 1 + size.singles + size.jobs:
        raise BenchFailed("not every enqueued job is there")
    return {"single_per_second": (single, "1/s"), "many_per_second": (many, "1/s")}


def idle(stage: Stage, size: Size) -> Measures:
    """What a leader and a stand-by cost when there is nothing to do."""
    leader = stage.start_replica()
    stage.lead()
    cpu, alone = _watch(stage, leader.pid, size)
    measures = {"leader_transactions": (alone, "1/s"), "leader_cpu": (cpu, "%")}
    standby = stage.start_replica()
    stage.lead()
    cpu, both = _watch(stage, standby.pid, size)
    return measures | {"standby_transactions": (max(0.0, both - alone), "1/s"), "standby_cpu": (cpu, "%")}


SCENARIOS: dict[str, Callable[[Stage, Size], Measures]] = {
    "drain": drain,
    "pickup": pickup,
    "failover": failover,
    "enqueue": enqueue,
    "idle": idle,
}


def percentile(values: list[float], percent: float) -> float:
    """The smallest value that at least so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def _percentiles(values: list[float], unit: str, percents: tuple[int, ...]) -> Measures:
    return {f"p{percent}": (percentile(values, percent), unit) for percent in percents}


def _enqueue_many(stage: Stage, count: int) -> None:
    for start in range(0, count, CHUNK):
        stage.client.enqueue_many(jobs.NOOP, ({"n": n} for n in range(start, min(start + CHUNK, count))))


def _all_done(stage: Stage) -> float | None:
    at = time.monotonic()
    last = int(str(stage.ask("select max(id) from dispatcher.job")))
    for after in (last - TAIL, 0):
        left = "select exists (select from dispatcher.job where id > %s and state not in ('succeeded', 'failed'))"
        if stage.ask(left, after):
            return None
    return at


def _mark_and_wait(stage: Stage, n: int) -> None:
    stage.client.enqueue(jobs.MARK, {"n": n})
    _wait_for(stage, n)


def _wait_for(stage: Stage, n: int) -> float:
    notes = stage.until(f"job {n}", lambda: [note for note in stage.notes() if note[0] == str(n)])
    return float(notes[0][1])


def _watch(stage: Stage, pid: int, size: Size) -> tuple[float, float]:
    """(percent of one CPU that the process used, transactions a second in the database)."""
    counted = "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()"
    time.sleep(size.settle_s)
    cpu_s, transactions, began = _cpu_s(pid), int(str(stage.ask(counted))), time.monotonic()
    time.sleep(size.idle_s)  # doing nothing is what is measured
    took = time.monotonic() - began
    used = (_cpu_s(pid) - cpu_s) / took * 100
    return used, (int(str(stage.ask(counted))) - transactions) / took


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
