"""Conditions on an answer: a place in its JSON and a comparison.

No expression is evaluated and no pattern is matched, so that no payload can run code or keep a thread busy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, JsonValue, Tag, model_validator

MOST_CHECKS = 20
LONGEST_NUMBER = 1000  # characters: what no sane answer has
_POINTER = re.compile(r"(/([^~/]|~[01])*)*")
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")
_HEX = re.compile(r"0[xX][0-9a-fA-F]+")
_ABSENT = object()


def _pointer(path: str) -> str:
    if _POINTER.fullmatch(path) is None:
        raise ValueError("a path is a JSON Pointer: write /result/confirmations, or /items/0 for the first of a list")
    return path


Path: TypeAlias = Annotated[str, Field(max_length=1000), AfterValidator(_pointer)]
Number: TypeAlias = Annotated[int, Field(strict=True)] | Annotated[float, Field(strict=True, allow_inf_nan=False)]


class Check(BaseModel):
    """A comparison of the value at a path; where there are several, all must hold.

    Where the path leads to nothing, only `"exists": false` holds.
    """

    model_config = ConfigDict(extra="forbid")

    path: Path
    """A JSON Pointer (RFC 6901) into the answer."""
    read_as: Literal["hex", "number"] | None = Field(None, alias="as")
    """Read a text as a number before it is compared: "0x1a" (hex), or "12.50" (number)."""
    equals: JsonValue = None
    not_equals: JsonValue = None
    at_least: Number = 0
    at_most: Number = 0
    one_of: list[JsonValue] = Field([], alias="in", min_length=1, max_length=1000)
    exists: bool = True
    """Whether there is a value other than null."""
    contains: JsonValue = None
    """A text has this text in it, or a list this element."""
    starts_with: str = ""

    @model_validator(mode="after")
    def _compares(self) -> Check:
        given = self.model_fields_set & set(_COMPARISONS)
        if not given:
            raise ValueError(
                "give a comparison: equals, not_equals, at_least, at_most, in, exists, contains, starts_with"
            )
        if self.read_as is not None:
            if given & {"contains", "starts_with"}:
                raise ValueError("contains and starts_with are for texts, and as makes a number of them")
            compared = [getattr(self, name) for name in given & {"equals", "not_equals"}]
            if not all(_number(value) is not None for value in [*compared, *self.one_of]):
                raise ValueError("with as, write numbers to compare with")
        return self

    def looks_at(self, place: str) -> bool:
        """Whether its path leads there or below."""
        return self.path == place or self.path.startswith(place + "/")

    def holds(self, answer: JsonValue) -> bool:
        """Whether the answer has at this path what is asked for."""
        found = _find(answer, self.path)
        if "exists" in self.model_fields_set and self.exists == (found is _ABSENT or found is None):
            return False
        given = [name for name in _COMPARISONS if name in self.model_fields_set and name != "exists"]
        if not given:
            return True
        if found is _ABSENT or (self.read_as is not None and (found := _read(found, self.read_as)) is None):
            return False
        return all(_COMPARISONS[name](found, getattr(self, name)) for name in given)

    def value(self, answer: JsonValue) -> Any:
        """What is at the path, None where nothing is."""
        found = _find(answer, self.path)
        return None if found is _ABSENT else found

    def told(self, answer: JsonValue) -> str:
        """The same in words."""
        found = _find(answer, self.path)
        name = self.path or "the answer"
        if found is _ABSENT:
            return f"{name} is not there"
        unread = self.read_as is not None and found is not None and _read(found, self.read_as) is None
        what = {"hex": ", which is no hexadecimal number", "number": ", which is no number"}
        return f"{name} is {short(found, 100)}" + (what[self.read_as] if unread and self.read_as else "")


class Group(BaseModel):
    """Several comparisons: one of these."""

    model_config = ConfigDict(extra="forbid")

    every: list[Check] = Field([], alias="all", min_length=1, max_length=MOST_CHECKS)
    any: list[Check] = Field([], min_length=1, max_length=MOST_CHECKS)

    @model_validator(mode="after")
    def _one(self) -> Group:
        if len(self.model_fields_set) != 1:
            raise ValueError("a condition has a path, or is one of all and any")
        return self

    def looks_at(self, place: str) -> bool:
        """Whether one of them does."""
        return any(check.looks_at(place) for check in self.every or self.any)

    def holds(self, answer: JsonValue) -> bool:
        """Whether all of them do, or any."""
        held = (check.holds(answer) for check in self.every or self.any)
        return all(held) if self.every else any(held)

    def value(self, answer: JsonValue) -> Any:
        """That of the first which holds."""
        return next((check.value(answer) for check in self.every or self.any if check.holds(answer)), None)

    def told(self, answer: JsonValue) -> str:
        """Of all those that hold as the whole does, or do not, since they are the reason."""
        held = self.holds(answer)
        return ", ".join(check.told(answer) for check in self.every or self.any if check.holds(answer) is held)


def _form(given: object) -> str:
    return "path" if isinstance(given, Check) or (isinstance(given, dict) and "path" in given) else "group"


Condition: TypeAlias = Annotated[Annotated[Check, Tag("path")] | Annotated[Group, Tag("group")], Discriminator(_form)]


def short(value: Any, most: int) -> str:
    """A value as JSON, its first `most` characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= most else text[:most] + "…"


def _find(answer: JsonValue, path: str) -> Any:
    value: Any = answer
    for part in path.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, list) and _INDEX.fullmatch(key) and int(key) < len(value):
            value = value[int(key)]
        else:
            return _ABSENT
    return value


def _read(value: Any, read_as: str) -> int | Decimal | None:
    if not isinstance(value, str):
        return _number(value)
    if len(value) > LONGEST_NUMBER:
        return None
    if read_as == "hex":
        return int(value, 16) if _HEX.fullmatch(value) else None
    try:
        number = Decimal(value)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _number(value: Any) -> int | Decimal | None:
    """Exact, so that 0.1 is "0.1" and large ones stay apart; None for what is no number, such as true."""
    if isinstance(value, float):
        return Decimal(repr(value))
    return value if isinstance(value, int | Decimal) and not isinstance(value, bool) else None


def _same(one: Any, other: Any) -> bool:
    """As JSON: 1 is 1.0, but not true."""
    first, second = _number(one), _number(other)
    if first is not None or second is not None:
        return first is not None and second is not None and first == second
    match one, other:
        case list(), list():
            return len(one) == len(other) and all(map(_same, one, other))
        case dict(), dict():
            return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    return type(one) is type(other) and bool(one == other)


def _at_least(found: Any, bound: Any) -> bool:
    value, least = _number(found), _number(bound)
    return value is not None and least is not None and value >= least


def _contains(found: Any, part: Any) -> bool:
    if isinstance(found, list):
        return any(_same(element, part) for element in found)
    return isinstance(found, str) and isinstance(part, str) and part in found


_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "equals": _same,
    "not_equals": lambda found, other: not _same(found, other),
    "at_least": _at_least,
    "at_most": lambda found, bound: _at_least(bound, found),
    "one_of": lambda found, values: any(_same(found, value) for value in values),
    "exists": lambda _found, _wanted: True,  # looked at before: it alone can hold where nothing is
    "contains": _contains,
    "starts_with": lambda found, start: isinstance(found, str) and found.startswith(start),
}
