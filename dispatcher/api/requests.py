"""What comes in, as the OpenAPI document shows it. Times are ISO 8601 with a zone, durations seconds or texts."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)

from dispatcher.options import MAX_PRIORITY, MIN_PRIORITY
from dispatcher.outcome import deeper

MAX_DEPTH = 100
MAX_ID = 2**63 - 1
MOST_JOBS = 10_000
CENTURY_S = 100 * 360 * 86400  # as PostgreSQL compares intervals


def _shallow(value: dict[str, Any]) -> dict[str, Any]:
    if not deeper(value, MAX_DEPTH):
        return value
    raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")


def _shallow_result(value: Any) -> Any:
    _shallow({"result": value})
    return value


def _written(value: Any) -> Any:
    """Numbers are no times here: what they would count from, and in what, is anybody's guess."""
    if isinstance(value, datetime) or (isinstance(value, str) and value[4:5] == "-"):
        return value
    raise ValueError("write a time with its zone, such as 2030-01-31T12:00:00Z")


def _whole(value: Any) -> Any:
    """As JSON has it: 3.0 is a whole number, and neither a text nor true is one."""
    if isinstance(value, bool | str):
        raise ValueError("it must be a whole number")
    return value


Moment = Annotated[AwareDatetime, BeforeValidator(_written)]
WHOLE = BeforeValidator(_whole)
Id = Annotated[int, Field(ge=1, le=MAX_ID), WHOLE]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern="^[^\x00]*$")]
TypeName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:/-]{1,200}$")]
Payload = Annotated[dict[str, Any], AfterValidator(_shallow)]
Duration = Annotated[
    Annotated[float, Field(ge=0, le=CENTURY_S, strict=True)]
    | Annotated[str, StringConstraints(pattern=r"^([0-9]{1,6}(ms|s|min)|[0-9]{1,5}h|[0-9]{1,4}d)$")],
    Field(description="Seconds, or a text such as `5s`, `15min`, `1d`."),
]
Timeout = Annotated[
    Annotated[float, Field(ge=0.001, le=CENTURY_S, strict=True)]
    | Annotated[str, StringConstraints(pattern=r"^([1-9][0-9]{0,5}(ms|s|min)|[1-9][0-9]{0,4}h|[1-9][0-9]{0,3}d)$")],
    Field(description="Seconds, or a text such as `5s`, `15min`, `1d`."),
]


class Strict(BaseModel):
    """What comes in: a field that is not known is an error, so that no option is misspelt in vain."""

    model_config = ConfigDict(extra="forbid")


class JobOptions(Strict):
    """What may be said about a job besides its type and its payload."""

    priority: Annotated[int, Field(ge=MIN_PRIORITY, le=MAX_PRIORITY), WHOLE] | None = Field(
        None, description="Lower runs first."
    )
    run_at: Moment | None = Field(None, description="Not before this time; or give `delay`.")
    delay: Duration | None = None
    tenant: Name | None = Field(
        None, description="By default the token's; another one only with a token of all tenants."
    )
    max_attempts: Annotated[int, Field(ge=1, le=MAX_PRIORITY), WHOLE] | None = None
    timeout: Timeout | None = None
    after: list[Id] | None = Field(None, max_length=1000, description="Runs once these jobs have ended.")
    on_failure: Literal["cancel", "run"] | None = Field(
        None, description="What becomes of it where one of `after` does not succeed."
    )


class JobRequest(JobOptions):
    """A job to be enqueued."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"type": "hello", "payload": {"name": "you"}, "delay": "5s"}]}
    )
    type: TypeName
    payload: Payload = Field(default_factory=dict)
    unique_key: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = Field(
        None, description="At most one unfinished job of the type has this key; the first one is answered."
    )
    parent: Id | None = Field(None, description="An open batch that it joins.")


class AnswerRequest(Strict):
    """How the work of a job ended that somebody else did."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"status": "succeeded", "result": {"pages": 12}}]}
    )
    status: Literal["succeeded", "failed"]
    result: Annotated[Any, AfterValidator(_shallow_result)] = Field(None, description="Of a success.")
    message: Annotated[str, StringConstraints(max_length=1000)] | None = Field(
        None, description="Of a failure: one line that says what was wrong."
    )
    retry: bool = Field(False, description="Of a failure: whether another try may help.")


class CallbackRequest(Strict):
    """A job that runs once a batch has ended."""

    type: TypeName
    payload: Payload = Field(default_factory=dict)
    priority: Annotated[int, Field(ge=MIN_PRIORITY, le=MAX_PRIORITY), WHOLE] | None = None
    run_at: Moment | None = None
    delay: Duration | None = None
    max_attempts: Annotated[int, Field(ge=1, le=MAX_PRIORITY), WHOLE] | None = None
    timeout: Timeout | None = None


class BatchRequest(JobOptions):
    """Jobs of one type under one that stands for them all."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"type": "hello", "payloads": [{"name": "Ann"}, {"name": "Bob"}], "callback": {"type": "hello"}}
            ]
        },
    )
    type: TypeName
    payloads: list[Payload] = Field(min_length=1, max_length=MOST_JOBS)
    callback: CallbackRequest | None = None


class LimitRequest(Strict):
    """What is given is changed; null gives way to what the code and the settings say."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"limit": 4, "rate": "100/min"}]})
    limit: Annotated[int, Field(ge=1, le=1_000_000), WHOLE] | None = None
    tenant_limit: Annotated[int, Field(ge=1, le=1_000_000), WHOLE] | None = None
    rate: (
        Annotated[float, Field(ge=0.001, le=1_000_000, strict=True)]
        | Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,5}/(s|min|h|d)$")]
        | None
    ) = Field(None, description="Starts a second, or a text such as `100/min`.")
    burst: Annotated[int, Field(ge=1, le=1_000_000), WHOLE] | None = None
    tenant: Name | None = Field(None, description="`limit` is this tenant's own.")


class ScheduleRequest(Strict):
    """A schedule to be added, or changed if there is one of this name."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"name": "nightly", "cron": "0 3 * * *", "zone": "Europe/Berlin", "type": "hello"}]
        },
    )
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:-]{0,99}$")]
    cron: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    type: TypeName
    payload: Payload = Field(default_factory=dict)
    zone: Annotated[str, StringConstraints(min_length=1, max_length=100)] = "UTC"
    catch_up: Literal["skip", "one", "all"] = "one"
    priority: Annotated[int, Field(ge=MIN_PRIORITY, le=MAX_PRIORITY), WHOLE] | None = None
    tenant: Name | None = None
    unique_key: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    max_attempts: Annotated[int, Field(ge=1, le=MAX_PRIORITY), WHOLE] | None = None
    timeout: Timeout | None = None
