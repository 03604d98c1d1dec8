"""What every Python peer shares: the probe that its jobs call, and its command line.

    install | bulk N | single N | pickup N GAP_MS | work

A peer gives a Peer; all but `work` print one line of JSON. Times are CLOCK_MONOTONIC, one clock for all processes.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DSN = os.environ.get("PEER_DSN", "")
CONCURRENCY = int(os.environ.get("PEER_CONC", "10"))
LOG = os.environ.get("PEER_LOG", "")
EACH = os.environ.get("PEER_MODE") == "log"  # note each job, not only the first and the last
TOTAL = int(os.environ.get("PEER_N", "0"))
WARM = -1  # the job that shows that a worker works
OTHER = 10**6  # a job that opens the connection
QUIET_S = 1.5  # before latencies are measured

Client = Any
_seen = 0


@dataclass(frozen=True, slots=True)
class Peer:
    """One job queue: how it makes its schema, enqueues jobs `{"n": n}`, and works."""

    install: Callable[[str], Awaitable[None]]
    client: Callable[[str], Awaitable[Client]]
    bulk: Callable[[Client, list[int]], Awaitable[None]]
    one: Callable[[Client, int], Awaitable[None]]
    work: Callable[[str, int], Awaitable[None]]


def hit(n: int) -> None:
    """To be called first in every job."""
    global _seen  # noqa: PLW0603 - as cheap as can be: it is part of what is measured
    if EACH:
        _note(f"{n} {time.monotonic():.6f}")
        return
    if _seen == 0:
        _note(f"first {time.monotonic():.6f}")
    _seen += 1
    if _seen == TOTAL:
        _note(f"last {time.monotonic():.6f}")


def main(peer: Peer, run: Callable[[Any], Any] = asyncio.run) -> None:
    """Carries out one command and ends the process, whatever threads the peer may have left."""
    answer = run(_command(peer, sys.argv[1], [float(argument) for argument in sys.argv[2:]]))
    print(json.dumps(answer), flush=True)
    os._exit(0)


async def _command(peer: Peer, command: str, numbers: list[float]) -> dict[str, Any]:
    if command == "install":
        await peer.install(DSN)
        return {}
    if command == "work":
        await peer.work(DSN, CONCURRENCY)
        return {}
    client, count = await peer.client(DSN), int(numbers[0])
    if command == "bulk":
        began = time.monotonic()
        await peer.bulk(client, list(range(count)))
        return {"s": time.monotonic() - began}
    if command == "single":
        await peer.one(client, OTHER)
        began = time.monotonic()
        for n in range(count):
            await peer.one(client, n)
        return {"s": time.monotonic() - began}
    return {"starts": await _pickup(peer, client, count, numbers[1] / 1000)}


async def _pickup(peer: Peer, client: Client, count: int, gap_s: float) -> list[float]:
    await peer.one(client, WARM)
    while not (Path(LOG).exists() and f"{WARM} " in Path(LOG).read_text()):
        await asyncio.sleep(0.05)
    await asyncio.sleep(QUIET_S)
    began, starts = time.monotonic(), []
    for n in range(count):
        await asyncio.sleep(max(0.0, began + n * gap_s - time.monotonic()))
        starts.append(time.monotonic())
        await peer.one(client, n)
    return starts


def _note(line: str) -> None:
    with Path(LOG).open("a") as log:
        log.write(line + "\n")
