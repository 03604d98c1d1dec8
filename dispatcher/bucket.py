"""Bucket: how many starts a rate allows right now."""

from __future__ import annotations


class Bucket:
    """A token bucket: one token a start, `rate` tokens a second, `burst` at most. Empty at first, since who led before
    may have used up what it had. Times are those of the caller's monotonic clock, in seconds.
    """

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: int, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = 0.0
        self._at = now

    def change(self, rate: float, burst: int, now: float) -> None:
        """Another rate from now on; what has come together stays, up to the new burst."""
        self._fill(now)
        self._rate, self._burst = rate, burst
        self._tokens = min(self._tokens, float(burst))

    def available(self, now: float) -> int:
        """Whole tokens."""
        self._fill(now)
        return int(self._tokens + 1e-9)  # a sum of fractions may fall short of the whole by a rounding error

    def take(self, count: int, now: float) -> None:
        """Uses up `count` tokens, which are available; fewer than none puts back what was not used."""
        self._fill(now)
        self._tokens -= count

    def wait_s(self, now: float, gather_s: float = 0.0) -> float:
        """Seconds until there is a token; at least `gather_s`, in which more come together, unless it is full."""
        self._fill(now)
        first = max(0.0, (1.0 - self._tokens) / self._rate) if self._tokens + 1e-9 < 1.0 else 0.0
        return max(first, min(gather_s, (self._burst - self._tokens) / self._rate))

    def _fill(self, now: float) -> None:
        self._tokens = min(float(self._burst), self._tokens + (now - self._at) * self._rate)
        self._at = now
