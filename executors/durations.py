"""Lengths of time as payloads give them: seconds, or a text such as 15min."""

from __future__ import annotations

import re
from typing import Annotated, TypeAlias

from pydantic import Field, StringConstraints

LONGEST_S = 366 * 86400
_TEXT = r"^[1-9][0-9]{0,4}(s|min|h|d)$"
_UNITS_S = {"s": 1, "min": 60, "h": 3600, "d": 86400}

Duration: TypeAlias = Annotated[float, Field(gt=0, le=LONGEST_S)] | Annotated[str, StringConstraints(pattern=_TEXT)]


def seconds(duration: float | str) -> float:
    """A Duration in seconds."""
    if isinstance(duration, int | float):
        return float(duration)
    number, unit = re.fullmatch(r"(\d+)(\w+)", duration).groups()  # type: ignore[union-attr] # by its pattern
    return float(number) * _UNITS_S[unit]


def is_duration(text: str) -> bool:
    """Whether a text is one."""
    return re.fullmatch(_TEXT, text) is not None
