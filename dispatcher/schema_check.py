"""Checks payloads against the JSON Schema that a type's replicas have published.

It knows the part of JSON Schema that pydantic writes; what it does not know it leaves to the executor's
own model. It is strict about structure (missing and unknown fields, objects, arrays) and lenient where
pydantic converts: numbers and booleans may come as text, integers as 5.0, times as numbers, text is
measured with and without the blanks around it, `oneOf` is read as `anyOf`. So a payload that the model
takes is not refused here, but for models that read other names than those in their schema
(populate_by_name, several validation aliases) or change the value before they look at it (validators with
mode="before").
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dispatcher.options import json_name

MAX_DEPTH = 50  # of references followed, five frames each; what lies deeper is left to the executor
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


def compile_schema(schema: Any) -> Callable[[Any], Misfit | None]:
    """A function that finds the first misfit of a value, or None."""
    check = _Compiler(schema).compile(schema)
    return lambda value: check(value, 0)


class _Compiler:
    """Turns each part of a schema into a function, once; a reference when first needed, as it may recur."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._references: dict[str, Check] = {}

    def compile(self, schema: Any) -> Check:
        if schema is False:
            return lambda _value, _depth: Misfit((), "is not allowed")
        if not isinstance(schema, dict):
            return _anything
        checks = [make(self, schema[word], schema) for word, make in _KEYWORDS.items() if word in schema]
        if not checks:
            return _anything
        return checks[0] if len(checks) == 1 else _every(checks)

    def reference(self, pointer: Any, _schema: Any) -> Check:
        def follow(value: Any, depth: int) -> Misfit | None:
            if depth > MAX_DEPTH:
                return None
            if (check := self._references.get(pointer)) is None:
                check = self._references[pointer] = self.compile(self._find(pointer))
            return check(value, depth + 1)

        return follow

    def type(self, names: Any, schema: dict[str, Any]) -> Check:
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

    def properties(self, properties: dict[str, Any], schema: dict[str, Any]) -> Check:
        checks = [(name, self.compile(part)) for name, part in properties.items()]
        known = frozenset(properties)
        extra = schema.get("additionalProperties", True)
        patterned = "patternProperties" in schema  # such names are left to the executor
        other = None if extra is True or patterned else self.compile(extra)

        def check(value: Any, depth: int) -> Misfit | None:
            if not isinstance(value, dict):
                return None
            for name, inner in checks:
                if name in value and (misfit := inner(value[name], depth)):
                    return _under(name, misfit)
            if other is not None and len(value) > 0:
                for name in value:
                    if name not in known and (misfit := other(value[name], depth)):
                        return Misfit((name,), "is no known field") if extra is False else _under(name, misfit)
            return None

        return check

    def additional(self, _extra: Any, schema: dict[str, Any]) -> Check:
        return _anything if "properties" in schema else self.properties({}, schema)

    def items(self, part: Any, schema: dict[str, Any]) -> Check:
        check, start = self.compile(part), len(schema.get("prefixItems", ()))
        closed = part is False

        def every(value: Any, depth: int) -> Misfit | None:
            if isinstance(value, list):
                for at in range(start, len(value)):
                    if misfit := check(value[at], depth):
                        return Misfit((), f"must have at most {start} items") if closed else _under(at, misfit)
            return None

        return every

    def prefix(self, parts: list[Any], _schema: Any) -> Check:
        checks = [self.compile(part) for part in parts]

        def each(value: Any, depth: int) -> Misfit | None:
            if isinstance(value, list):
                for at, (check, item) in enumerate(zip(checks, value, strict=False)):
                    if misfit := check(item, depth):
                        return _under(at, misfit)
            return None

        return each

    def any_of(self, parts: list[Any], _schema: Any) -> Check:
        checks = [self.compile(part) for part in parts]

        def check(value: Any, depth: int) -> Misfit | None:
            misfits = []
            for branch in checks:
                if (misfit := branch(value, depth)) is None:
                    return None
                misfits.append(misfit)
            deepest = max(misfits, key=lambda misfit: len(misfit.path))
            if deepest.path or len(misfits) == 1:
                return deepest  # the branch that was meant, most likely
            return Misfit((), ", or ".join(dict.fromkeys(misfit.reason for misfit in misfits)))

        return check

    def all_of(self, parts: list[Any], _schema: Any) -> Check:
        return _every([self.compile(part) for part in parts])

    def _find(self, pointer: str) -> Any:
        found = self._root
        for part in pointer.removeprefix("#").strip("/").split("/"):
            name = part.replace("~1", "/").replace("~0", "~")
            if name:
                found = found.get(name) if isinstance(found, dict) else None
        return found


def _required(names: list[str], _schema: Any) -> Check:
    def check(value: Any, _depth: int) -> Misfit | None:
        if isinstance(value, dict):
            for name in names:
                if name not in value:
                    return Misfit((name,), "is missing")
        return None

    return check


def _enum(allowed: list[Any], _schema: Any) -> Check:
    listed = ", ".join(repr(value) for value in allowed[:20]) + (", …" if len(allowed) > 20 else "")
    reason = f"must be {'one of ' if len(allowed) > 1 else ''}{listed}"
    return lambda value, _depth: None if any(_same(value, one) for one in allowed) else Misfit((), reason)


def _bound(word: str, holds: Callable[[float, float], bool], said: str) -> Callable[[Any, Any, Any], Check]:
    def make(_compiler: Any, limit: Any, _schema: Any) -> Check:
        def check(value: Any, _depth: int) -> Misfit | None:
            number = _as_number(value)
            return None if number is None or holds(number, limit) else Misfit((), f"must be {said} {limit}")

        return check if isinstance(limit, int | float) else _anything

    make.__name__ = word
    return make


def _length(
    kind: type[str] | type[list[Any]] | type[dict[str, Any]], holds: Callable[[int, int], bool], said: str
) -> Callable[[Any, Any, Any], Check]:
    def make(_compiler: Any, limit: Any, schema: dict[str, Any]) -> Check:
        is_set = kind is list and schema.get("uniqueItems")  # pydantic's sets drop what comes twice, then count

        def check(value: Any, _depth: int) -> Misfit | None:
            if not isinstance(value, kind) or is_set:
                return None
            fits = holds(len(value), limit) or (isinstance(value, str) and holds(len(value.strip()), limit))
            return None if fits else Misfit((), f"must have {said} {limit} {_UNITS[kind]}{'' if limit == 1 else 's'}")

        return check

    return make


def _pattern(_compiler: Any, text: str, _schema: Any) -> Check:
    try:
        found = re.compile(text).search
    except re.error:  # pydantic's are of another dialect
        return _anything

    def check(value: Any, _depth: int) -> Misfit | None:
        if not isinstance(value, str) or found(value) or found(value.strip()):
            return None
        return Misfit((), f"must match {text!r}")

    return check


def _multiple(_compiler: Any, step: float, _schema: Any) -> Check:
    def check(value: Any, _depth: int) -> Misfit | None:
        number = _as_number(value)
        if number is None or not step:
            return None
        ratio = number / step
        whole = math.isfinite(ratio) and math.isclose(ratio, round(ratio), rel_tol=1e-9, abs_tol=1e-9)
        return None if whole else Misfit((), f"must be a multiple of {step}")

    return check


def _anything(_value: Any, _depth: int) -> None:
    return None


def _every(checks: list[Check]) -> Check:
    def check(value: Any, depth: int) -> Misfit | None:
        for one in checks:
            if misfit := one(value, depth):
                return misfit
        return None

    return check


def _under(name: str | int, misfit: Misfit) -> Misfit:
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
_KEYWORDS: dict[str, Callable[[_Compiler, Any, Any], Check]] = {
    "type": _Compiler.type,
    "$ref": _Compiler.reference,
    "enum": lambda _, allowed, schema: _enum(allowed, schema),
    "const": lambda _, allowed, schema: _enum([allowed], schema),
    "required": lambda _, names, schema: _required(names, schema),
    "properties": _Compiler.properties,
    "additionalProperties": _Compiler.additional,
    "prefixItems": _Compiler.prefix,
    "items": _Compiler.items,
    "minimum": _bound("minimum", lambda number, limit: number >= limit, "at least"),
    "maximum": _bound("maximum", lambda number, limit: number <= limit, "at most"),
    "exclusiveMinimum": _bound("exclusiveMinimum", lambda number, limit: number > limit, "more than"),
    "exclusiveMaximum": _bound("exclusiveMaximum", lambda number, limit: number < limit, "less than"),
    "multipleOf": _multiple,
    "minLength": _length(str, lambda length, limit: length >= limit, "at least"),
    "maxLength": _length(str, lambda length, limit: length <= limit, "at most"),
    "pattern": _pattern,
    "minItems": _length(list, lambda length, limit: length >= limit, "at least"),
    "maxItems": _length(list, lambda length, limit: length <= limit, "at most"),
    "minProperties": _length(dict, lambda length, limit: length >= limit, "at least"),
    "maxProperties": _length(dict, lambda length, limit: length <= limit, "at most"),
    "anyOf": _Compiler.any_of,
    "oneOf": _Compiler.any_of,
    "allOf": _Compiler.all_of,
}
