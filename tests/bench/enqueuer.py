"""One of several clients that enqueue at the same time: `python -m tests.bench.enqueuer DSN JOBS`.

It says when it is ready, begins when it reads a line, and then tells when it was done, in monotonic seconds: one clock
for all processes.
"""

from __future__ import annotations

import sys
import time

from dispatcher import Client
from tests.bench import jobs


def main(dsn: str, count: int) -> None:
    """Enqueues one job after another, each in a transaction of its own."""
    with Client(dsn) as client:
        client.enqueue(jobs.QUIET)
        print("ready", flush=True)
        sys.stdin.readline()
        for _ in range(count):
            client.enqueue(jobs.QUIET)
        print(time.monotonic())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
