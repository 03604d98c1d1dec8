"""Types of values on the command line: durations and times."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from dispatcher.options import NAIVE_TIME
from dispatcher.settings import parse_duration


class Duration(click.ParamType[float]):
    """A duration, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Names the flag in its complaint."""
        try:
            return parse_duration(value).total_seconds()
        except ValueError as exc:
            self.fail(str(exc), param, ctx)


class Moment(click.ParamType[datetime]):
    """An ISO 8601 time with its zone."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Refuses a time without a zone: any zone assumed would be wrong for somebody."""
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no time: write 2030-01-31T12:00:00+01:00, or Z for UTC", param, ctx)
        if moment.utcoffset() is None:
            self.fail(f"{value!r} {NAIVE_TIME}", param, ctx)
        return moment


class Past(click.ParamType[datetime | float]):
    """A time, or how long ago, in seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime | float:
        """What starts as a date does is a time."""
        if str(value)[4:5] == "-":
            return Moment().convert(value, param, ctx)
        try:
            return parse_duration(value).total_seconds()
        except ValueError:
            self.fail(
                f"{value!r} is neither a time, such as 2030-01-31T12:00:00Z, nor how long ago, such as 2h", param, ctx
            )
