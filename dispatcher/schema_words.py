"""Checks of single values against the words of JSON Schema, as lenient as pydantic is where it converts."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dispatcher.options import json_name

_BOOLEAN_TEXTS = frozenset({"true", "false", "t", "f", "yes", "no", "y", "n", "on", "off", "1", "0"})
_TIME_FORMATS = frozenset({"date-time", "date", "time", "duration"})  # which pydantic reads from numbers, too


@dataclass(frozen=True, slots=True)
class Misfit:
    """What does not fit, and where."""

    path: tuple[str | int, ...]
    reason: str

    def __str__(self) -> str:
        where = ".".join(str(part) for part in self.path)
        return f"{where}: {self.reason}" if where else self.reason


Check = Callable[[Any, int], Misfit | None]


def type_is(names: Any, schema: dict[str, Any]) -> Check:
    """A value of one of the types, or one that pydantic turns into it."""
    wanted = [name for name in ([names] if isinstance(names, str) else names) if name in _TYPES]
    takes_numbers = schema.get("format") in _TIME_FORMATS
    tests = [_TYPES[name] for name in wanted]
    expected = " or ".join(_CALLED[name] for name in wanted)

    def check(value: Any, _depth: int) -> Misfit | None:
        for test in tests:
            if test(value):
                return None
        if not tests or (takes_numbers and _is_number(value)):
            return None
        return Misfit((), f"must be {expected}, not {json_name(value)}")

    return check


def required(names: list[str], _schema: Any) -> Check:
    """An object with these fields."""

    def check(value: Any, _depth: int) -> Misfit | None:
        if isinstance(value, dict):
            for name in names:
                if name not in value:
                    return Misfit((name,), "is missing")
        return None

    return check


def enum(allowed: list[Any], _schema: Any) -> Check:
    """One of these values."""
    listed = ", ".join(repr(value) for value in allowed[:20]) + (", …" if len(allowed) > 20 else "")
    reason = f"must be {'one of ' if len(allowed) > 1 else ''}{listed}"
    return lambda value, _depth: None if any(_same(value, one) for one in allowed) else Misfit((), reason)


def bound(holds: Callable[[float, float], bool], said: str) -> Callable[[Any, Any], Check]:
    """A number on one side of a limit; `said` is that side."""

    def make(limit: Any, _schema: Any) -> Check:
        def check(value: Any, _depth: int) -> Misfit | None:
            number = _as_number(value)
            return None if number is None or holds(number, limit) else Misfit((), f"must be {said} {limit}")

        return check if isinstance(limit, int | float) else anything

    return make


def length(
    kind: type[str] | type[list[Any]] | type[dict[str, Any]], holds: Callable[[int, int], bool], said: str
) -> Callable[[Any, Any], Check]:
    """A text, array or object that is not too short, or not too long."""

    def make(limit: Any, schema: dict[str, Any]) -> Check:
        is_set = kind is list and schema.get("uniqueItems")  # pydantic's sets drop what comes twice, then count

        def check(value: Any, _depth: int) -> Misfit | None:
            if not isinstance(value, kind) or is_set:
                return None
            fits = holds(len(value), limit) or (isinstance(value, str) and holds(len(value.strip()), limit))
            return None if fits else Misfit((), f"must have {said} {limit} {_UNITS[kind]}{'' if limit == 1 else 's'}")

        return check

    return make


def pattern(text: str, _schema: Any) -> Check:
    """A text with a match."""
    try:
        found = re.compile(text).search
    except re.error:  # pydantic's are of another dialect
        return anything

    def check(value: Any, _depth: int) -> Misfit | None:
        if not isinstance(value, str) or found(value) or found(value.strip()):
            return None
        return Misfit((), f"must match {text!r}")

    return check


def multiple_of(step: float, _schema: Any) -> Check:
    """A whole number of steps."""

    def check(value: Any, _depth: int) -> Misfit | None:
        number = _as_number(value)
        if number is None or not step:
            return None
        ratio = number / step
        whole = math.isfinite(ratio) and math.isclose(ratio, round(ratio), rel_tol=1e-9, abs_tol=1e-9)
        return None if whole else Misfit((), f"must be a multiple of {step}")

    return check


def anything(_value: Any, _depth: int) -> None:
    """Any value fits."""
    return


def every(checks: list[Check]) -> Check:
    """A value that passes all checks."""

    def check(value: Any, depth: int) -> Misfit | None:
        for one in checks:
            if misfit := one(value, depth):
                return misfit
        return None

    return check


def under(name: str | int, misfit: Misfit) -> Misfit:
    """A misfit seen from one level up."""
    return Misfit((name, *misfit.path), misfit.reason)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)  # a boolean, too: pydantic takes true for 1


def _as_number(value: Any) -> float | None:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return value if isinstance(value, int | float) else None


def _is_lax_number(value: Any) -> bool:
    return _as_number(value) is not None


def _is_lax_integer(value: Any) -> bool:
    if isinstance(value, int):
        return True
    number = _as_number(value)
    return number is not None and math.isfinite(number) and number == int(number)


def _is_lax_boolean(value: Any) -> bool:
    return (
        value in (0, 1)
        if isinstance(value, int | float)
        else isinstance(value, str) and value.lower() in _BOOLEAN_TEXTS
    )


def _same(value: Any, allowed: Any) -> bool:
    if value == allowed:
        return True
    return isinstance(allowed, int | float) and isinstance(value, str) and _as_number(value) == allowed


_CALLED = {
    "object": "an object",
    "array": "an array",
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "a boolean",
    "null": "null",
}
_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "integer": _is_lax_integer,
    "number": _is_lax_number,
    "boolean": _is_lax_boolean,
    "null": lambda value: value is None,
}
_UNITS = {str: "character", list: "item", dict: "field"}
