"""Rates: how often jobs of a type may start."""

from __future__ import annotations

import math
import re
from typing import Any

SLOWEST, FASTEST = 1e-6, 1e6  # starts a second
_TEXT = re.compile(r"\s*(\d{1,12}(?:\.\d{1,9})?)\s*/\s*(s|sec|second|m|min|minute|h|hour|d|day)\s*")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_rate(value: Any) -> float:
    """Starts a second, from a number of them or a text such as `5/s`, `100/min`, `1000/h`; raises ValueError."""
    rate = None
    if isinstance(value, str):
        if match := _TEXT.fullmatch(value):
            rate = float(match[1]) / _SECONDS[match[2][0]]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        rate = float(value)
    if rate is None or not SLOWEST <= rate <= FASTEST:  # nor NaN
        raise ValueError(f"a rate is more than zero: starts a second, or a text such as 100/min; it is {value!r}")
    return rate


def default_burst(rate: float) -> int:
    """As many starts at once as come together in a second."""
    return max(1, math.ceil(rate))


def format_rate(rate: float) -> str:
    """In the largest unit that makes it one or more: `5/s`, `30/min`."""
    for unit, seconds in (("s", 1), ("min", 60), ("h", 3600)):
        if rate * seconds >= 1 - 1e-9:
            return f"{rate * seconds:g}/{unit}"
    return f"{rate * 86400:g}/d"
