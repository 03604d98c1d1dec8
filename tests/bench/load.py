"""Loads an HTTP server: so many connections, each sending a request once it has the answer to the last one.

    python -m tests.bench.load PORT CONNECTIONS SECONDS RATE < REQUESTS

REQUESTS are complete ones, each line a JSON text, sent in turn; RATE is how many a second, 0 for as many as are
answered. Prints a JSON object: how many were answered, in how long, with which statuses, and the latencies' quantiles.
With a rate a latency counts from when the request was due, so that a server that stalls cannot hide it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import cast

import uvloop

HEAD_END = b"\r\n\r\n"
LENGTH = b"content-length: "


class Load:
    """What all connections do together."""

    def __init__(self, requests: list[bytes], seconds: float, rate: float) -> None:
        self.requests: Iterator[bytes] = itertools.cycle(requests)
        self.until = time.perf_counter() + seconds
        self.rate = rate
        self.sent = 0
        self.began = time.perf_counter()
        self.latencies: list[float] = []
        self.statuses: Counter[str] = Counter()

    def due(self) -> float:
        """When the next request is to be sent."""
        self.sent += 1
        return self.began + self.sent / self.rate if self.rate else time.perf_counter()


class Connection(asyncio.Protocol):
    """One at a time."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._loop = asyncio.get_running_loop()
        self._answer = b""
        self._due = 0.0
        self.over = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one, and no child of it
        self._next()

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head, end, body = self._answer.partition(HEAD_END)
        if not end:
            return
        place = head.lower().find(LENGTH)
        length = int(head[place + len(LENGTH) :].split(b"\r\n", 1)[0]) if place >= 0 else 0
        if len(body) < length:
            return
        self._answer = b""
        self._load.latencies.append(time.perf_counter() - self._due)
        self._load.statuses[head[9:12].decode()] += 1
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(None)

    def _next(self) -> None:
        self._due = self._load.due()
        if max(self._due, now := time.perf_counter()) >= self._load.until:
            self._transport.close()
        elif self._due > now:
            self._loop.call_later(self._due - now, self._send)
        else:
            self._send()

    def _send(self) -> None:
        self._transport.write(next(self._load.requests))


async def run(port: int, connections: int, seconds: float, rate: float, requests: list[bytes]) -> dict[str, object]:
    """What came of it."""
    loop, load = asyncio.get_running_loop(), Load(requests, seconds, rate)
    made = [await loop.create_connection(lambda: Connection(load), "127.0.0.1", port) for _ in range(connections)]
    await asyncio.gather(*(connection.over for _, connection in made))
    ordered = sorted(load.latencies)
    return {
        "answers": len(ordered),
        "seconds": time.perf_counter() - load.began,
        "statuses": dict(load.statuses),
        **{f"p{percent}_s": ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] for percent in (50, 99)},
    }


if __name__ == "__main__":
    port, connections, seconds, rate = sys.argv[1:]
    given = [json.loads(line).encode() for line in sys.stdin]
    print(json.dumps(uvloop.run(run(int(port), int(connections), float(seconds), float(rate), given))))
