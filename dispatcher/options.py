"""What a caller says about a job, checked and written as the JSON that the SQL functions take; no I/O."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeAlias, TypedDict, cast

from pydantic import ValidationError

from dispatcher.batch import Callback
from dispatcher.errors import InvalidOption, InvalidPayload
from dispatcher.outcome import MAX_DEPTH, TooDeep, encode
from dispatcher.settings import parse_duration

Duration: TypeAlias = timedelta | float | str
"""A timedelta, a number of seconds, or a text such as `5s`, `15min`, `1h30min`."""

MIN_PRIORITY, MAX_PRIORITY = -32768, 32767
TOO_DEEP = f"the payload is nested too deeply; the limit is {MAX_DEPTH} levels"
NAIVE_TIME = "has no time zone and none is assumed: write 2030-01-31T12:00:00+01:00, or Z in place of +01:00 for UTC"


class Options(TypedDict, total=False):
    """What enqueue takes besides type and payload; None is as good as not given."""

    priority: int | None  # lower runs first
    run_at: datetime | None  # aware
    delay: Duration | None  # instead of run_at
    tenant: str | None
    unique_key: str | None
    max_attempts: int | None
    timeout: Duration | None
    after: int | Iterable[int] | None  # runs once these have ended
    on_failure: Literal["cancel", "run"] | None  # what becomes of it where one of them does not succeed; cancel
    parent: int | None  # the open batch that it joins


def encode_options(options: Options, **more: Any) -> str:
    """The options as JSON text, and `more` that is ready for it; raises InvalidOption."""
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if unknown := sorted(set(given) - set(Options.__annotations__)):
        known = ", ".join(Options.__annotations__)
        raise InvalidOption(f"unknown option {unknown[0]!r}; known options: {known}")
    if "run_at" in given and "delay" in given:
        raise InvalidOption("give run_at or delay, not both")
    for name, value in given.items():
        given[name] = _ENCODERS[name](name, value)
    given |= more
    try:
        return encode(given) if given else "{}"
    except (TypeError, ValueError) as exc:
        raise InvalidOption(f"the options cannot be written as JSON: {exc}") from None


def encode_keys(unique_keys: object, count: int) -> list[str | None]:
    """A unique key, or None, for each of so many payloads; raises InvalidOption."""
    if not isinstance(unique_keys, Sequence) or isinstance(unique_keys, str | bytes) or len(unique_keys) != count:
        raise InvalidOption(f"there must be a unique key, or None, for each of the {count} payloads")
    return [None if key is None else checked_key(key) for key in unique_keys]


def checked_key(key: Any) -> str:
    """A unique key; raises InvalidOption."""
    return _text("unique_key", key)


def encode_callback(callback: str | Callback) -> dict[str, Any]:
    """What SQL knows as the option `callback`; raises InvalidOption or InvalidPayload."""
    given = Callback(callback) if isinstance(callback, str) else callback
    if not isinstance(given, Callback):
        raise InvalidOption(f"callback must be the name of a type or a Callback, not {callback!r:.100}")
    options: Any = given.options or {}
    if not isinstance(options, Mapping):
        raise InvalidOption(f"callback: its options must be a dict, not {json_name(options)}")
    try:
        return {
            "type": given.type,
            "payload": json.loads(encode_payload(given.payload)),
            "options": json.loads(encode_options(cast(Options, dict(options)))),
        }
    except (InvalidPayload, InvalidOption) as exc:
        raise exc.__class__(f"callback: {exc}") from None


def seconds(name: str, value: Any) -> float:
    """A duration in seconds; raises InvalidOption that names it."""
    if isinstance(value, bool):
        raise InvalidOption(f"{name}: {value!r} is no duration")
    try:
        return parse_duration(value).total_seconds()
    except (ValueError, OverflowError) as exc:
        raise InvalidOption(f"{name}: {exc}") from None


def aware(name: str, value: Any) -> str:
    """An aware time in UTC, as text; raises InvalidOption for one without a zone."""
    if not isinstance(value, datetime):
        raise InvalidOption(f"{name} must be an aware datetime, not {type(value).__name__}")
    if value.utcoffset() is None:
        raise InvalidOption(f"{name} {value.isoformat()} {NAIVE_TIME}")
    try:
        return value.astimezone(UTC).isoformat()
    except OverflowError:
        raise InvalidOption(f"{name} {value.isoformat()} is out of range") from None


def job_id(name: str, value: Any) -> int:
    """The id of a job; raises InvalidOption that names it."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**63:
        raise InvalidOption(f"{name} takes the id of a job, not {value!r:.100}")
    return value


def several(payloads: Any) -> Iterable[Any]:
    """The payloads of many jobs; raises InvalidPayload where they cannot be gone through."""
    if isinstance(payloads, str | bytes) or not isinstance(payloads, Iterable):
        raise InvalidPayload(f"the payloads must be several, such as a list of dicts, not {json_name(payloads)}")
    return payloads


def encode_payload(payload: Any) -> str:
    """A dict, or an instance of a pydantic model, as JSON text; raises InvalidPayload that names the spot."""
    body = {} if payload is None else payload
    if hasattr(body, "model_dump"):
        try:
            body = body.model_dump(mode="json", by_alias=True)
        except ValueError as exc:
            raise InvalidPayload(f"the payload cannot be written as JSON: {exc}") from exc
    if not isinstance(body, dict):
        raise InvalidPayload(f"the payload must be a JSON object (a dict), not {json_name(body)}")
    try:
        return encode(body)
    except TooDeep:
        raise InvalidPayload(TOO_DEEP) from None
    except (TypeError, ValueError) as exc:
        raise InvalidPayload(f"the payload cannot be stored: {_spot(body)}{exc}") from None


def parse_payload(text: str) -> tuple[dict[str, Any], str]:
    """A payload that comes as JSON text, and the text to be stored; raises InvalidPayload."""
    try:
        body = json.loads(text)
    except RecursionError:
        raise InvalidPayload(TOO_DEEP) from None
    except ValueError as exc:
        raise InvalidPayload(f"the payload is not JSON: {exc}") from None
    if not isinstance(body, dict):
        raise InvalidPayload(f"the payload must be a JSON object, not {json_name(body)}")
    return body, encode_payload(body)


def json_name(value: Any) -> str:
    """What a value is called in JSON, with its article."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list() | tuple():
            return "an array"
        case dict():
            return "an object"
    return f"a Python {type(value).__name__}"


def _whole(name: str, value: Any, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= MAX_PRIORITY:
        raise InvalidOption(f"{name} must be a whole number from {low} to {MAX_PRIORITY}; it is {value!r}")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= 200:
        raise InvalidOption(f"{name} must be a text of 1 to 200 characters")
    try:
        encode(value)
    except ValueError as exc:
        raise InvalidOption(f"{name} cannot be stored: {exc}") from None
    return value


def _positive(name: str, value: Any) -> float:
    if (number := seconds(name, value)) <= 0:
        raise InvalidOption(f"{name} must be more than zero")
    return number


def _ids(name: str, value: Any) -> list[int]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        return [job_id(name, value)]
    return [job_id(name, one) for one in value]


def _on_failure(name: str, value: Any) -> str:
    if value not in ("cancel", "run"):
        raise InvalidOption(f"{name} must be 'cancel' or 'run', not {value!r:.100}")
    return str(value)


_ENCODERS: dict[str, Callable[[str, Any], Any]] = {
    "priority": lambda name, value: _whole(name, value, MIN_PRIORITY),
    "max_attempts": lambda name, value: _whole(name, value, 1),
    "run_at": aware,
    "delay": seconds,
    "timeout": _positive,
    "tenant": _text,
    "unique_key": _text,
    "after": _ids,
    "on_failure": _on_failure,
    "parent": job_id,
}


def _spot(value: Any, path: str = "", depth: int = 0) -> str:
    """The path of the first value that cannot be written, as `rows.3.name: `; empty where it is the whole."""
    if depth > 100:
        return ""
    entries: Any = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    )
    for key, inner in entries:
        try:
            encode({key: None} if isinstance(value, dict) else None)
            encode(inner)
        except (TypeError, ValueError):
            here = f"{path}.{key!s}" if path else str(key)
            return _spot(inner, here, depth + 1)
    return f"{path!s}: ".encode("utf-8", "backslashreplace").decode() if path else ""


def misfits(exc: ValidationError) -> str:
    """What of a payload does not fit its model, and where: the first three, in one line."""
    found = exc.errors(include_url=False, include_input=False, include_context=False)
    parts = []
    for one in found[:3]:
        where, reason = ".".join(map(str, one["loc"])), one["msg"].removeprefix("Value error, ")
        parts.append(f"{where}: {reason}" if where else reason)
    return "; ".join(parts) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")
