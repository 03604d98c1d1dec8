"""A leader that is killed, or stopped, while a job waits for the next one."""

from __future__ import annotations

import signal
import time

from tests.bench.scenarios.marking import mark, wait_for
from tests.bench.scenarios.measures import Measures, Size, percentiles
from tests.bench.stage import stage


def failover(dsn: str, size: Size) -> Measures:
    """kill -9 of the leader: until the next leader claims, and until the executor's first line."""
    claimed_ms, started_ms = [], []
    with stage(dsn) as own:
        own.start_replica()
        own.start_replica()
        for n in range(size.kills):
            leader = own.find(own.lead())
            mark(own, 2 * n)
            wait_for(own, 2 * n)
            leader.send_signal(signal.SIGSTOP)  # for an instant, so that it is not the one who claims what comes now
            id = mark(own, 2 * n + 1)
            leader.kill()
            killed_at, killed_time = time.monotonic(), time.time()
            started_ms.append((wait_for(own, 2 * n + 1) - killed_at) * 1000)
            # The claim's own now(), as in dispatcher.claim, whose row is soon gone; by the clock of the same host.
            claimed = own.ask("select extract(epoch from started_at)::float8 from dispatcher.job where id = %s", id)
            claimed_ms.append((float(str(claimed)) - killed_time) * 1000)
            leader.wait()
            own.start_replica()
    return percentiles(claimed_ms, "ms", (50, 99), "claim_") | percentiles(started_ms, "ms", (50, 99), "start_")


def stop(dsn: str, size: Size) -> Measures:
    """SIGSTOP of the leader: until the executor's first line on the next one, beside the lease that must run out."""
    lease = {"DISPATCHER_LEASE_DURATION": f"{size.lease_s}s"}
    started_ms = []
    with stage(dsn) as own:
        own.start_replica(**lease)
        own.start_replica(**lease)
        for n in range(size.stops):
            leader = own.find(own.lead())
            mark(own, 2 * n)
            wait_for(own, 2 * n)
            leader.send_signal(signal.SIGSTOP)
            stopped_at = time.monotonic()
            mark(own, 2 * n + 1)
            started_ms.append((wait_for(own, 2 * n + 1) - stopped_at) * 1000)
            leader.kill()
            leader.wait()
            own.start_replica(**lease)
    lease_ms = size.lease_s * 1000
    return (
        {"lease": (lease_ms, "ms")}
        | percentiles(started_ms, "ms", (50, 99), "start_")
        | percentiles([started - lease_ms for started in started_ms], "ms", (50, 99), "after_lease_")
    )
