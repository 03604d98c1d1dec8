"""A job: what an executor is given, and what everybody else can see of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple


class State(StrEnum):
    """The states of a job; the last four are final."""

    SCHEDULED = "scheduled"
    BLOCKED = "blocked"
    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    PARTIAL = "partial"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def final(self) -> bool:
        """True once the job has ended."""
        return self in FINAL


FINAL = frozenset({State.SUCCEEDED, State.PARTIAL, State.FAILED, State.CANCELED})


class CancelReason(StrEnum):
    """Why a running job is asked to stop."""

    REQUESTED = "requested"  # somebody canceled it
    TIMEOUT = "timeout"  # it outlived its timeout
    SHUTDOWN = "shutdown"  # its replica stops; the job is tried again without using up a try
    LOST = "lost"  # its replica has lost the database; the job will be given to another one


class Job(NamedTuple):  # a tuple, since one is made for each execution and a frozen dataclass costs four times as much
    """What an executor is given. `payload` is a dict, or an instance of the type's payload model."""

    id: int
    type: str
    tenant: str | None
    payload: Any
    priority: int
    attempt: int
    failures: int
    created_at: datetime
    checkpoint: Any = None
    parent_id: int | None = None
    """The batch it belongs to."""


@dataclass(frozen=True, slots=True)
class JobInfo:
    """A job as a client sees it: the columns of the view dispatcher.jobs."""

    id: int
    type: str
    tenant: str | None
    state: State
    priority: int
    payload: Any
    progress: float
    progress_message: str | None
    result: Any
    result_url: str | None
    errors: list[dict[str, Any]]
    attempt: int
    failures: int
    max_attempts: int
    timeout: timedelta
    unique_key: str | None
    created_at: datetime
    run_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    owner: int | None
    cancel_requested: bool
    timed_out: bool
    parent_id: int | None


@dataclass(frozen=True, slots=True)
class Page:
    """Jobs, the newest first. `next` is the `before` of the page behind it, None at the end."""

    jobs: list[JobInfo]
    next: int | None
