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

from collections.abc import Callable
from typing import Any

from dispatcher.schema_words import (
    Check,
    Misfit,
    anything,
    bound,
    enum,
    every,
    length,
    multiple_of,
    pattern,
    required,
    type_is,
    under,
)

MAX_DEPTH = 50  # of references followed, five frames each; what lies deeper is left to the executor


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
            return anything
        checks = [make(self, schema[word], schema) for word, make in _KEYWORDS.items() if word in schema]
        if not checks:
            return anything
        return checks[0] if len(checks) == 1 else every(checks)

    def reference(self, pointer: Any, _schema: Any) -> Check:
        def follow(value: Any, depth: int) -> Misfit | None:
            if depth > MAX_DEPTH:
                return None
            if (check := self._references.get(pointer)) is None:
                check = self._references[pointer] = self.compile(self._find(pointer))
            return check(value, depth + 1)

        return follow

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
                    return under(name, misfit)
            if other is not None and len(value) > 0:
                for name in value:
                    if name not in known and (misfit := other(value[name], depth)):
                        return Misfit((name,), "is no known field") if extra is False else under(name, misfit)
            return None

        return check

    def additional(self, _extra: Any, schema: dict[str, Any]) -> Check:
        return anything if "properties" in schema else self.properties({}, schema)

    def items(self, part: Any, schema: dict[str, Any]) -> Check:
        check, start = self.compile(part), len(schema.get("prefixItems", ()))
        closed = part is False

        def each(value: Any, depth: int) -> Misfit | None:
            if isinstance(value, list):
                for at in range(start, len(value)):
                    if misfit := check(value[at], depth):
                        return Misfit((), f"must have at most {start} items") if closed else under(at, misfit)
            return None

        return each

    def prefix(self, parts: list[Any], _schema: Any) -> Check:
        checks = [self.compile(part) for part in parts]

        def each(value: Any, depth: int) -> Misfit | None:
            if isinstance(value, list):
                for at, (check, item) in enumerate(zip(checks, value, strict=False)):
                    if misfit := check(item, depth):
                        return under(at, misfit)
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
        return every([self.compile(part) for part in parts])

    def _find(self, pointer: str) -> Any:
        found = self._root
        for part in pointer.removeprefix("#").strip("/").split("/"):
            name = part.replace("~1", "/").replace("~0", "~")
            if name:
                found = found.get(name) if isinstance(found, dict) else None
        return found


def _word(make: Callable[[Any, Any], Check]) -> Callable[[_Compiler, Any, Any], Check]:
    return lambda _compiler, value, schema: make(value, schema)


_KEYWORDS: dict[str, Callable[[_Compiler, Any, Any], Check]] = {
    "type": _word(type_is),
    "$ref": _Compiler.reference,
    "enum": _word(enum),
    "const": _word(lambda allowed, schema: enum([allowed], schema)),
    "required": _word(required),
    "properties": _Compiler.properties,
    "additionalProperties": _Compiler.additional,
    "prefixItems": _Compiler.prefix,
    "items": _Compiler.items,
    "minimum": _word(bound(lambda number, limit: number >= limit, "at least")),
    "maximum": _word(bound(lambda number, limit: number <= limit, "at most")),
    "exclusiveMinimum": _word(bound(lambda number, limit: number > limit, "more than")),
    "exclusiveMaximum": _word(bound(lambda number, limit: number < limit, "less than")),
    "multipleOf": _word(multiple_of),
    "minLength": _word(length(str, lambda size, limit: size >= limit, "at least")),
    "maxLength": _word(length(str, lambda size, limit: size <= limit, "at most")),
    "pattern": _word(pattern),
    "minItems": _word(length(list, lambda size, limit: size >= limit, "at least")),
    "maxItems": _word(length(list, lambda size, limit: size <= limit, "at most")),
    "minProperties": _word(length(dict, lambda size, limit: size >= limit, "at least")),
    "maxProperties": _word(length(dict, lambda size, limit: size <= limit, "at most")),
    "anyOf": _Compiler.any_of,
    "oneOf": _Compiler.any_of,
    "allOf": _Compiler.all_of,
}
