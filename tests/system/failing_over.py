"""The primary of a fleet dies, and its standby is promoted."""

import time

from tests.standby import Pair
from tests.system.replicas import Fleet


def fail_over(fleet: Fleet, pair: Pair, postgres_dsn: str) -> float:
    """Kills the primary and promotes the standby; when the primary was killed."""
    killed = time.monotonic()
    pair.primary.kill()
    pair.promote()
    fleet.reconnect(pair.standby_dsn(postgres_dsn))
    return killed
