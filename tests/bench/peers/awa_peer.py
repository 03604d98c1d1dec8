"""awa: its queue storage, COPY for many, an async handler."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import awa

from tests.bench.peers import probe

CONNECTIONS = 20


@dataclass
class BenchJob:
    """Its payload."""

    n: int


async def install(dsn: str) -> None:
    """Its schema, at once with its present storage engine."""
    client = awa.AsyncClient(dsn)
    await client.migrate()
    await client.install_queue_storage()


async def client(dsn: str) -> awa.AsyncClient:
    """A pool."""
    return awa.AsyncClient(dsn)


async def bulk(client: awa.AsyncClient, ns: list[int]) -> None:
    """COPY, its fastest way."""
    await client.enqueue_many_copy([BenchJob(n) for n in ns], queue="q")


async def one(client: awa.AsyncClient, n: int) -> None:
    """One job."""
    await client.insert(BenchJob(n), queue="q")


async def work(dsn: str, concurrency: int) -> None:
    """One worker."""
    client = awa.AsyncClient(dsn, max_connections=CONNECTIONS)

    @client.task(BenchJob, queue="q")  # type: ignore[untyped-decorator,unused-ignore]
    async def job(job: object) -> None:
        probe.hit(job.args.n)  # type: ignore[attr-defined]

    await client.start([{"name": "q", "max_workers": concurrency}])
    await asyncio.Event().wait()


if __name__ == "__main__":
    probe.main(probe.Peer(install, client, bulk, one, work))
