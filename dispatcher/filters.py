"""Which jobs are meant: filters as callers give them, checked; no I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypedDict

from dispatcher.errors import InvalidOption, WrongState
from dispatcher.job import State
from dispatcher.options import Duration, aware, seconds
from dispatcher.outcome import encode

TROUBLED = frozenset({State.FAILED, State.PARTIAL, State.CANCELED})
MAX_ID = 2**63 - 1


class EndedFilter(TypedDict, total=False):
    """Which ended jobs; None is as good as not given."""

    type: str | None
    tenant: str | None
    state: (
        str | Sequence[str] | None
    )  # failed, partial, canceled; to count or purge also succeeded; failed if not given
    kind: str | None  # of the last error: exception, timeout, crash, ...
    message: str | None  # a part of the last error's message
    since: datetime | Duration | None  # when it ended: an aware time, or how long ago
    until: datetime | Duration | None
    limit: int | None  # so many, the newest first
    all: bool | None  # an otherwise empty filter is meant


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which jobs a list shall have; `since` and `until` are of their end or, before that, of their creation."""

    type: str | None = None
    states: tuple[State, ...] | None = None
    tenant: str | None = None
    kind: str | None = None
    since: datetime | float | None = None  # seconds ago, where it is a number
    until: datetime | float | None = None
    parent: int | None = None

    @classmethod
    def make(
        cls,
        *,
        state: str | Sequence[str] | None = None,
        since: datetime | Duration | None = None,
        until: datetime | Duration | None = None,
        **others: Any,
    ) -> Wanted:
        """From what a caller gave; raises InvalidOption and WrongState."""
        states = None if state is None else _states(state)
        if states is None and others.get("kind") is not None:
            states = tuple(sorted(TROUBLED))  # what succeeded at last is not looked for by its errors
        for name in ("type", "tenant", "kind"):
            if others.get(name) is not None:
                _text(name, others[name])
        return cls(states=states, since=_time("since", since), until=_time("until", until), **others)

    @property
    def narrow(self) -> bool:
        """True if more is asked of a job than its state, type and tenant."""
        return any(value is not None for value in (self.kind, self.since, self.until))


def find_by(wanted: Wanted) -> str:
    """The statement that finds such jobs without a look at all the others, where there is one."""
    if wanted.parent is not None:
        return "find_children"
    states = set(wanted.states or ())
    if len(states) == 1 and not states & {State.SUCCEEDED, *TROUBLED}:
        return f"find_{states.pop()}_jobs"
    return "find_jobs"


def encode_filter(given: Mapping[str, Any]) -> str:
    """A filter as the JSON that the SQL functions take; they judge the values. Raises InvalidOption."""
    known = EndedFilter.__annotations__
    if unknown := sorted(set(given) - set(known)):
        raise InvalidOption(f"unknown filter {unknown[0]!r}; known filters: {', '.join(known)}")
    body = {name: _PLAIN.get(name, _same)(name, value) for name, value in given.items() if value is not None}
    try:
        return encode(body)
    except (TypeError, ValueError) as exc:
        raise InvalidOption(f"the filter cannot be written as JSON: {exc}") from None


def checked_limit(limit: Any, least: int = 1) -> int:
    """A number of jobs; raises InvalidOption."""
    if isinstance(limit, bool) or not isinstance(limit, int) or not least <= limit <= MAX_ID:
        raise InvalidOption(f"limit must be a whole number from {least}; it is {limit!r}")
    return limit


def checked_tenant(tenant: Any) -> str:
    """A tenant that there may be; raises InvalidOption."""
    _text("tenant", tenant)
    return str(tenant)


def _states(given: str | Sequence[str]) -> tuple[State, ...]:
    names = [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    try:
        states = tuple(sorted({State(name) for name in names}))
    except ValueError:
        bad = next(name for name in names if name not in list(State))
        raise WrongState(f"there is no state {bad!r}; the states are {', '.join(State)}") from None
    if not states:
        raise WrongState(f"no state is given; the states are {', '.join(State)}")
    return states


def _time(name: str, value: Any) -> datetime | float | None:
    if value is None:
        return None
    if isinstance(value, datetime):
        return datetime.fromisoformat(aware(name, value))
    return seconds(name, value)


def _plain_time(name: str, value: Any) -> str | float:
    return aware(name, value) if isinstance(value, datetime) else seconds(name, value)


def _plain_states(_name: str, value: Any) -> Any:
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str | Mapping) else value


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not 1 <= len(value) <= 200 or "\0" in value:
        raise InvalidOption(f"{name} must be a text of 1 to 200 characters")
    try:
        encode(value)
    except ValueError as exc:
        raise InvalidOption(f"{name} cannot be looked for: {exc}") from None


def _same(_name: str, value: Any) -> Any:
    return value


_PLAIN: dict[str, Callable[[str, Any], Any]] = {"since": _plain_time, "until": _plain_time, "state": _plain_states}
