"""One of several clients that enqueue at the same time: `python -m tests.bench.enqueuer DSN JOBS START`.

It waits for the start (monotonic seconds, one clock for all processes) and prints when it was done.
"""

from __future__ import annotations

import sys
import time

from dispatcher import Client
from tests.bench import jobs


def main(dsn: str, count: int, start: float) -> None:
    """Enqueues one job after another, each in a transaction of its own."""
    with Client(dsn) as client:
        client.enqueue(jobs.QUIET)
        time.sleep(max(0.0, start - time.monotonic()))
        for _ in range(count):
            client.enqueue(jobs.QUIET)
    print(time.monotonic())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
