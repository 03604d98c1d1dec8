"""What goes out, as the OpenAPI document shows it, where it is not what the clients see. Times are ISO 8601 in UTC,
durations seconds.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool

from dispatcher.job import State
from dispatcher.queries.fleet import ReplicaInfo
from dispatcher.queries.schedules import ScheduleInfo
from dispatcher.queries.stats import TypeStats


class Created(BaseModel):
    """A job that was enqueued, or the unfinished one with its unique key."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"id": 4711, "state": "pending", "created_at": "2030-01-31T12:00:00.000000Z", "created": True}]
        }
    )
    id: int
    state: State
    created_at: datetime
    created: StrictBool = Field(description="False: it was there already.")


class CreatedMany(BaseModel):
    """The jobs, in the order in which they were given."""

    ids: list[int]
    new: list[bool] = Field(description="False: it was there already, by its unique key.")
    created: int = Field(description="How many are new.")


class CreatedBatch(BaseModel):
    """A batch that was enqueued."""

    id: int
    total: int


class JobError(BaseModel):
    """An error of one attempt."""

    model_config = ConfigDict(extra="allow")
    at: str | None = None
    attempt: int | None = None
    kind: str | None = None
    message: str | None = None


_JOB: dict[str, Any] = {
    "id": 4711,
    "type": "hello",
    "tenant": None,
    "state": "succeeded",
    "priority": 0,
    "progress": 100,
    "progress_message": None,
    "attempt": 1,
    "failures": 0,
    "max_attempts": 5,
    "timeout": 900,
    "unique_key": None,
    "parent_id": None,
    "owner": 1,
    "cancel_requested": False,
    "timed_out": False,
    "created_at": "2030-01-31T12:00:00.000000Z",
    "run_at": "2030-01-31T12:00:00.000000Z",
    "started_at": "2030-01-31T12:00:00.003000Z",
    "finished_at": "2030-01-31T12:00:00.004000Z",
    "result_url": None,
    "payload": {"name": "you"},
    "result": {"greeting": "Hello, you!"},
    "errors": [],
}


class JobView(BaseModel):
    """A job."""

    model_config = ConfigDict(json_schema_extra={"examples": [_JOB]})
    id: int
    type: str
    tenant: str | None
    state: State
    priority: int
    progress: float
    progress_message: str | None
    attempt: int
    failures: int
    max_attempts: int | None
    timeout: float | None = Field(description="Seconds.")
    unique_key: str | None
    parent_id: int | None
    owner: int | None
    cancel_requested: bool
    timed_out: bool
    created_at: datetime
    run_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    result_url: str | None
    payload: dict[str, Any]
    result: Any
    errors: list[JobError]


class JobPage(BaseModel):
    """Jobs, the newest first."""

    jobs: list[JobView]
    next: str | None = Field(description="The `cursor` of the page behind this one; null at the end.")


class StateView(BaseModel):
    """What became of a job."""

    id: int
    state: State = Field(description="`running` where its owner was asked to stop it.")


class TypeView(BaseModel):
    """A type of job, what holds for it, and how many have not succeeded, by state, counted up to 20,000.

    A token of a tenant is told its pending and running ones.
    """

    name: str
    description: str
    pool: str
    limit: int | None
    limit_from: str | None
    tenant_limit: int | None
    tenant_limit_from: str | None
    tenant_limits: dict[str, int]
    rate: float | None
    rate_from: str | None
    burst: int | None
    burst_from: str | None
    timeout: float
    max_attempts: int
    max_payload_bytes: int
    payload_schema: dict[str, Any] | None
    published_at: datetime
    paused_at: datetime | None
    paused_by: str | None
    counts: dict[str, int]


class TypeList(BaseModel):
    """All types, by name."""

    types: list[TypeView]


class PauseView(BaseModel):
    """Whether it is paused now, and whether that is new."""

    paused: bool
    changed: bool


class ScheduleList(BaseModel):
    """All schedules, by name."""

    schedules: list[ScheduleInfo]


class ReplicaList(BaseModel):
    """All daemons."""

    replicas: list[ReplicaInfo]


class StatsView(BaseModel):
    """The types of which something was settled within the last day, by name."""

    types: list[TypeStats]


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str = Field("about:blank", description="Names the kind of problem for programs.")
    title: str
    status: int
    detail: str = ""
    errors: list[dict[str, Any]] | None = Field(None, description="What is wrong where, in a body or a query.")
