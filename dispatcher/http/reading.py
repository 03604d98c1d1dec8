"""What answers mean: JSON as the dataclasses of the database client, problems as its errors. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from dispatcher import errors
from dispatcher.errors import (
    AccessDenied,
    ApiUnavailable,
    DispatcherError,
    InvalidOption,
    InvalidPayload,
    InvalidSchedule,
    JobNotFound,
    PayloadTooLarge,
    TooManyJobs,
    UnknownType,
)
from dispatcher.http.exchange import Answer
from dispatcher.job import State
from dispatcher.queries.explain import Explanation, Reason
from dispatcher.queries.stats import SPANS_S, Quantiles, TypeStats, WindowStats

if TYPE_CHECKING:

    class Data(Protocol):
        """A dataclass."""

        __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    D = TypeVar("D", bound=Data)

T = TypeVar("T")
_URN = "urn:dispatcher:"
_NO_PATH = "Not Found"  # what the server says of a path that it does not know at all
_BY_PLACE: dict[str, type[DispatcherError]] = {
    "payload": InvalidPayload,
    "payloads": InvalidPayload,
    "type": UnknownType,
    "name": InvalidSchedule,
    "cron": InvalidSchedule,
    "zone": InvalidSchedule,
    "id": JobNotFound,
}


def read(answer: Answer, make: Callable[[Any], T], *, missing: type[DispatcherError] | None = None) -> T:
    """What a good answer tells, as `make` makes it; raises what any other one means.

    `missing`: what a 404 means that says no more than that.
    """
    if not answer.good:
        raise refusal(answer, missing)
    try:
        return make(json.loads(answer.body))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as exc:
        raise ApiUnavailable("what answers is not the dispatcher's HTTP API, or one of another version") from exc


def fill(kind: type[D], data: Mapping[str, Any]) -> D:
    """A dataclass from the fields of the same names; what else there is belongs to a newer server."""
    return kind(**{each.name: _value(str(each.type), data[each.name]) for each in fields(kind)})


def explanation(data: Any) -> Explanation:
    """Why a job does not run."""
    return fill(Explanation, {**data, "reasons": [fill(Reason, one) for one in data["reasons"]]})


def type_stats(data: Any) -> TypeStats:
    """A type's statistics."""
    return TypeStats(data["type"], **{name: _window(data[name]) for name in SPANS_S})


def _window(data: Mapping[str, Any]) -> WindowStats:
    quantiles = {name: None if data[name] is None else fill(Quantiles, data[name]) for name in ("duration", "wait")}
    return fill(WindowStats, {**data, **quantiles})


def refusal(answer: Answer, missing: type[DispatcherError] | None = None) -> DispatcherError:
    """The error that an answer stands for, in one line."""
    problem = _problem(answer)
    if problem is None:
        return ApiUnavailable(f"the server answered {_status(answer)}, and not as the dispatcher's HTTP API does")
    line = " ".join(str(problem.get("detail") or _status(answer)).split())
    if kind := _kind(problem.get("type")):
        return kind(line)
    match answer.status:
        case 401 | 403:
            return AccessDenied(line)
        case 404 if line == _NO_PATH:
            return ApiUnavailable("the server has no such path: is the url right?")
        case 404 if missing is not None:
            return missing(line)
        case 413:
            return PayloadTooLarge(line)
        case 422:
            return _misfit(problem)(line)
        case 429:
            return TooManyJobs(line)
    return ApiUnavailable(f"the server answered {_status(answer)}: {line}")


def _problem(answer: Answer) -> dict[str, Any] | None:
    if not answer.headers.get("Content-Type", "").startswith("application/problem+json"):
        return None
    try:
        problem = json.loads(answer.body)
    except (ValueError, RecursionError):
        return None
    return problem if isinstance(problem, dict) else None


def _kind(name: Any) -> type[DispatcherError] | None:
    kind = getattr(errors, str(name).removeprefix(_URN), None) if str(name).startswith(_URN) else None
    return kind if isinstance(kind, type) and issubclass(kind, DispatcherError) else None


def _misfit(problem: Mapping[str, Any]) -> type[DispatcherError]:
    """By the first place that is wrong, such as `body.3.payload`."""
    wrong = problem.get("errors")
    place = wrong[0].get("loc", ()) if isinstance(wrong, list) and wrong and isinstance(wrong[0], dict) else ()
    return next((_BY_PLACE[part] for part in place if part in _BY_PLACE), InvalidOption)


def _status(answer: Answer) -> str:
    try:
        return f"{answer.status} {HTTPStatus(answer.status).phrase}"
    except ValueError:
        return str(answer.status)


def _value(type: str, value: Any) -> Any:
    if type.startswith("datetime"):
        return None if value is None else datetime.fromisoformat(value)
    if type == "timedelta":
        return timedelta(seconds=value or 0)
    if type == "float":
        return float(value)  # JSON has 1 for 1.0
    return State(value) if type == "State" else value
