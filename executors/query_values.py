"""Values for the parameters of a named query: checked against their kinds before any SQL is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from typing import TypeAlias
from uuid import UUID

Scalar: TypeAlias = str | int | Decimal | bool | date | datetime | UUID
Value: TypeAlias = Scalar | list[Scalar] | None


def checked(kinds: Mapping[str, str], given: Mapping[str, object]) -> dict[str, Value]:
    """A value for each parameter, as Python has it; raises ValueError that names the parameter."""
    if unknown := sorted(set(given) - set(kinds)):
        raise ValueError(f"there is no parameter {unknown[0]!r}; it takes {', '.join(kinds) or 'none'}")
    return {name: _value(name, kind, given.get(name)) for name, kind in kinds.items()}


def _value(name: str, kind: str, given: object) -> Value:
    if given is None:
        if kind.endswith("?"):
            return None
        raise ValueError(f"give the parameter {name!r}, {_describe(kind)}")
    plain = kind.removesuffix("?")
    try:
        if not plain.endswith("[]"):
            return KINDS[plain](given)
        if not isinstance(given, list):
            raise ValueError
        return [KINDS[plain.removesuffix("[]")](one) for one in given]
    except (ValueError, InvalidOperation):
        raise ValueError(f"the parameter {name!r} must be {_describe(plain)}") from None


def _describe(kind: str) -> str:
    kind = kind.removesuffix("?")
    what = WORDS[kind.removesuffix("[]")]
    return f"a list, each {what}" if kind.endswith("[]") else what


def _text(given: object) -> str:
    if not isinstance(given, str) or "\0" in given:
        raise ValueError
    given.encode()  # half of a surrogate pair has no bytes
    return given


def _int(given: object) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or not -(2**63) <= given < 2**63:
        raise ValueError
    return given


def _number(given: object) -> Decimal:
    if isinstance(given, bool) or not isinstance(given, str | int | float):
        raise ValueError
    number = Decimal(str(given))  # of a float, which JSON has, its shortest digits
    if not number.is_finite() or abs(number.adjusted()) > 1000:
        raise ValueError
    return number


def _bool(given: object) -> bool:
    if not isinstance(given, bool):
        raise ValueError
    return given


def _date(given: object) -> date:
    return date.fromisoformat(_text(given))


def _timestamp(given: object) -> datetime:
    at = datetime.fromisoformat(_text(given))
    if at.utcoffset() is None:  # the session's own zone would silently be assumed
        raise ValueError
    return at


def _uuid(given: object) -> UUID:
    return UUID(_text(given))


KINDS: dict[str, Callable[[object], Scalar]] = {
    "text": _text,
    "int": _int,
    "number": _number,
    "bool": _bool,
    "date": _date,
    "timestamp": _timestamp,
    "uuid": _uuid,
}
WORDS = {
    "text": "a text without NUL",
    "int": "a whole number of at most 64 bits",
    "number": 'a number, or one as text such as "12.50"',
    "bool": "true or false",
    "date": 'a date such as "2013-01-31"',
    "timestamp": 'a time with its zone such as "2013-01-31T12:00:00Z"',
    "uuid": "a UUID",
}
