"""The scenarios. Each plays in databases of its own, answers measures, and checks that what it measured did happen."""

from __future__ import annotations

from collections.abc import Callable

from tests.bench.scenarios.dask import dask
from tests.bench.scenarios.drain import drain, limited
from tests.bench.scenarios.enqueueing import enqueue, lines, notify
from tests.bench.scenarios.failover import failover, stop
from tests.bench.scenarios.growth import growth
from tests.bench.scenarios.handover import handover
from tests.bench.scenarios.held import held
from tests.bench.scenarios.idle import idle
from tests.bench.scenarios.measures import Measures, Size
from tests.bench.scenarios.memory import memory
from tests.bench.scenarios.pickup import pickup
from tests.bench.scenarios.pools import pools
from tests.bench.scenarios.serving import http
from tests.bench.scenarios.wal import wal
from tests.bench.scenarios.work import work

SCENARIOS: dict[str, Callable[[str, Size], Measures]] = {
    "drain": drain,
    "limited": limited,
    "work": work,
    "held": held,
    "growth": growth,
    "wal": wal,
    "enqueue": enqueue,
    "lines": lines,
    "notify": notify,
    "pickup": pickup,
    "pools": pools,
    "dask": dask,
    "http": http,
    "failover": failover,
    "stop": stop,
    "handover": handover,
    "idle": idle,
    "memory": memory,
}
