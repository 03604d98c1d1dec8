"""When a job is tried again: exponential back-off with jitter, and how many failures end it."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delay before the next try: initial_s × factor^(failures - 1), at most maximum_s, ± jitter (a share of it)."""

    initial_s: float = 5.0
    factor: float = 2.0
    maximum_s: float = 3600.0
    jitter: float = 0.2

    def __post_init__(self) -> None:
        finite = all(map(math.isfinite, (self.initial_s, self.factor, self.maximum_s)))
        if not (finite and self.initial_s >= 0 and self.maximum_s >= 0 and self.factor >= 1 and 0 <= self.jitter <= 1):
            raise ValueError("a back-off needs initial_s >= 0, maximum_s >= 0, factor >= 1 and jitter from 0 to 1")

    def delay_s(self, failures: int, chance: float) -> float:
        """Seconds to wait after the `failures`-th failure; `chance` is a random number from 0 to 1."""
        try:
            delay = min(self.maximum_s, self.initial_s * self.factor ** max(0, failures - 1))
        except OverflowError:
            delay = self.maximum_s
        return delay * (1 + self.jitter * (2 * chance - 1))


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a type is tried, with what pauses, and whether a time-out is tried again."""

    max_attempts: int = 5
    backoff: Backoff = Backoff()
    retry_timeouts: bool = False
