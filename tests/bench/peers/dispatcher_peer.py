"""This project: one replica, settings at their defaults but for the number of threads."""

from __future__ import annotations

import os
import sys

from dispatcher import Client, Context, Job, Registry, executor, migrate
from dispatcher.db import connect
from dispatcher.queries.replicas import publish_types
from tests.bench.peers import probe

TYPE = "peers.job"
CHUNK = 10_000


@executor(TYPE)
def job(job: Job, ctx: Context) -> None:
    """Does nothing."""
    probe.hit(job.payload["n"])


async def install(dsn: str) -> None:
    """The schema, and the type, which a replica publishes at its start."""
    migrate.migrate(dsn)
    with connect(dsn) as conn:
        registry = Registry.load(["tests.bench.peers.dispatcher_peer"])
        publish_types(conn, registry, limits={}, timeout_s=900.0, max_payload_bytes=1 << 20)


async def client(dsn: str) -> Client:
    """A connection."""
    return Client(dsn)


async def bulk(client: Client, ns: list[int]) -> None:
    """Large chunks."""
    for start in range(0, len(ns), CHUNK):
        client.enqueue_many(TYPE, [{"n": n} for n in ns[start : start + CHUNK]])


async def one(client: Client, n: int) -> None:
    """One job."""
    client.enqueue(TYPE, {"n": n})


async def work(dsn: str, concurrency: int) -> None:
    """The daemon itself, as systemd would start it."""
    own = {
        "DISPATCHER_DSN": dsn,
        "DISPATCHER_THREADS": str(concurrency),
        "DISPATCHER_EXECUTORS": "tests.bench.peers.dispatcher_peer",
        "DISPATCHER_METRICS_PORT": "0",
    }
    os.execve(sys.executable, [sys.executable, "-m", "dispatcher", "run"], os.environ | own)


if __name__ == "__main__":
    probe.main(probe.Peer(install, client, bulk, one, work))
