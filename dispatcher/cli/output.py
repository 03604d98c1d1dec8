"""Data on standard output: aligned text for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from dispatcher.cli.base import printable

WIDEST = 60  # characters of a cell


def print_json(value: Any) -> None:
    """One JSON value, on one line."""
    utf8 = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"
    click.echo(json.dumps(value, default=_plain, ensure_ascii=not utf8))


def json_text(value: Any) -> str:
    """A JSON value for a person to read."""
    text = json.dumps(value, ensure_ascii=False, default=_plain, indent=2)
    return "\n".join(printable(line) for line in text.splitlines())


def print_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Aligned columns; numbers to the right."""
    cells = [[cell(value) for value in row] for row in rows]
    widths = [max(len(column) for column in columns) for columns in zip(head, *cells, strict=True)]
    right = [
        bool(rows) and all(isinstance(value, int | float | None) for value in column)
        for column in zip(*rows, strict=True)
    ]
    for row in (list(head), *cells):
        padded = [
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(row, widths, right or [False] * len(head), strict=True)
        ]
        click.echo("  ".join(padded).rstrip())


def print_fields(pairs: Sequence[tuple[str, Any]]) -> None:
    """A name and a value a line."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        text = value if isinstance(value, str) and "\n" in value else cell(value, 10_000)
        first, *rest = text.split("\n")
        click.echo(f"{name.ljust(width)}  {first}")
        for line in rest:
            click.echo(" " * (width + 2) + line)


def cell(value: Any, widest: int = WIDEST) -> str:
    """A value as a short text."""
    match value:
        case None | "":
            text = "-"
        case bool():
            text = "yes" if value else "no"
        case datetime():
            text = age(value)
        case timedelta():
            text = duration(value.total_seconds())
        case float():
            text = f"{value:g}"
        case list() | tuple():
            text = ", ".join(str(item) for item in value) or "-"
        case _:
            text = str(value)
    text = printable(text)
    return text if len(text) <= widest else text[: widest - 1] + "…"


def age(then: datetime, now: datetime | None = None) -> str:
    """How long ago, or in how long."""
    seconds = ((now or datetime.now(UTC)) - then).total_seconds()
    if abs(seconds) < 1:
        return "now"
    return f"{duration(seconds)} ago" if seconds > 0 else f"in {duration(-seconds)}"


def moment(then: datetime | None) -> str:
    """A time in full, in the local zone, and how long ago."""
    return "-" if then is None else f"{then.astimezone().isoformat(' ', 'seconds')} ({age(then)})"


def duration(seconds: float) -> str:
    """In its two largest units."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    for size, unit, smaller, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size}{unit}" + (f" {rest}{small}" if rest else "")
    return f"{whole}s"


def as_dict(value: Any) -> dict[str, Any]:
    """A dataclass as an object for JSON."""
    return {one.name: getattr(value, one.name) for one in fields(value)}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if is_dataclass(value):
        return as_dict(value)
    return str(value)
