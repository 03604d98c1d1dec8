"""The scenarios. Each plays in databases of its own, answers measures, and checks that what it measured did happen."""

from __future__ import annotations

from collections.abc import Callable

from tests.bench.scenarios.drains import DRAINS
from tests.bench.scenarios.enqueueing import ENQUEUES
from tests.bench.scenarios.measures import Measures, Size
from tests.bench.scenarios.resting import COSTS
from tests.bench.scenarios.waiting import LATENCIES

SCENARIOS: dict[str, Callable[[str, Size], Measures]] = DRAINS | ENQUEUES | LATENCIES | COSTS
