"""pgqueuer: asyncpg, uvloop as its own benchmark uses it, lists of 1,000, one connection."""

from __future__ import annotations

import json

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.queries import Queries

from tests.bench.peers import probe

CHUNK = 1000


async def install(dsn: str) -> None:
    """Its schema."""
    await Queries(AsyncpgDriver(await asyncpg.connect(dsn))).install()


async def client(dsn: str) -> Queries:
    """A connection."""
    return Queries(AsyncpgDriver(await asyncpg.connect(dsn)))


async def bulk(queries: Queries, ns: list[int]) -> None:
    """Lists, its fastest way."""
    for start in range(0, len(ns), CHUNK):
        part = ns[start : start + CHUNK]
        payloads = [json.dumps({"n": n}).encode() for n in part]
        await queries.enqueue(["job"] * len(part), payloads, [0] * len(part))


async def one(queries: Queries, n: int) -> None:
    """One job."""
    await queries.enqueue("job", json.dumps({"n": n}).encode())


async def work(dsn: str, concurrency: int) -> None:
    """One worker; the concurrency is its batch_size."""
    queue = PgQueuer(AsyncpgDriver(await asyncpg.connect(dsn)))

    @queue.entrypoint("job")  # type: ignore[untyped-decorator,unused-ignore]
    async def job(job: object) -> None:
        probe.hit(json.loads(job.payload)["n"])  # type: ignore[attr-defined]

    await queue.run(batch_size=concurrency)


if __name__ == "__main__":
    probe.main(probe.Peer(install, client, bulk, one, work), uvloop.run)
