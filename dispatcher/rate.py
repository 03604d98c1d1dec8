"""Rates."""

import math


def default_burst(rate: float) -> int:
    """As many starts at once as come together in a second."""
    return max(1, math.ceil(rate))
