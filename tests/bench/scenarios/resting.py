"""Scenarios of what a replica costs: idle, and in memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench import jobs
from tests.bench.scenarios.draining import CHUNK, Backlog, filled
from tests.bench.scenarios.measures import Measures, Size
from tests.bench.stage import Stage, stage

THREADS = 64
TRANSACTIONS = "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()"


def idle(dsn: str, size: Size) -> Measures:
    """What a leader and a stand-by cost when there is nothing to do."""
    with stage(dsn) as own:
        leader = own.start_replica()
        own.lead()
        cpu, alone = _watch(own, leader.pid, size)
        measures = {"leader_cpu": (cpu, "%"), "leader_transactions": (alone, "1/s")}
        standby = own.start_replica()
        own.lead()
        cpu, both = _watch(own, standby.pid, size)
    return measures | {"standby_cpu": (cpu, "%"), "standby_transactions": (max(0.0, both - alone), "1/s")}


def memory(dsn: str, size: Size) -> Measures:
    """Resident memory: idle, with very many pending jobs on 64 threads, and over a load that lasts."""
    with stage(dsn) as own:
        replica = own.start_replica()
        own.lead()
        time.sleep(size.idle_s / 2)
        measures = {"idle": (_resident_mb(replica.pid), "MB")}
    threads = {"DISPATCHER_THREADS": str(THREADS)}
    backlog = Backlog(size.pending, type=jobs.QUIET)
    with filled(dsn, backlog) as own:
        replica = own.start_replica(**threads)
        highest = 0.0
        left = "select exists (select from dispatcher.job where state in ('pending', 'running') and id > %s)"
        while own.ask(left, backlog.count * 9 // 10):
            highest = max(highest, _resident_mb(replica.pid))
            time.sleep(0.05)
        own.stop_replica(replica)
    measures["a_million_pending"] = (highest, "MB")
    with stage(dsn) as own:
        replica = own.start_replica(**threads)
        own.lead()
        began, early = time.monotonic(), 0.0
        while (elapsed := time.monotonic() - began) < size.load_s:
            own.client.enqueue_many(jobs.QUIET, ({"n": n} for n in range(CHUNK)))
            if not early and elapsed > size.load_s / 10:
                early = _resident_mb(replica.pid)
        late = _resident_mb(replica.pid)
        own.stop_replica(replica)
    return measures | {"load_early": (early, "MB"), "load_late": (late, "MB"), "load": (size.load_s, "s")}


def _resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("the kernel tells no resident set")


def _watch(own: Stage, pid: int, size: Size) -> tuple[float, float]:
    """Percent of one CPU that the process uses; transactions a second in the database, nearly all of one statement."""
    time.sleep(size.settle_s)
    cpu_s, transactions, began = _cpu_s(pid), int(str(own.ask(TRANSACTIONS))), time.monotonic()
    time.sleep(size.idle_s)  # doing nothing is what is measured
    took = time.monotonic() - began
    used = (_cpu_s(pid) - cpu_s) / took * 100
    return used, (int(str(own.ask(TRANSACTIONS))) - transactions) / took


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


COSTS: dict[str, Callable[[str, Size], Measures]] = {"idle": idle, "memory": memory}
