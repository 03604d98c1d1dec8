"""A batch: jobs that were enqueued together, and the job that stands for them all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from dispatcher.job import State

BATCH_TYPE = "batch"
"""The type of a batch's own job, which nobody executes."""


@dataclass(frozen=True, slots=True)
class Callback:
    """A job that is enqueued together with a batch and runs once that has ended, however it did.

    `options` as those of enqueue, without after, on_failure, parent, tenant and unique_key.
    """

    type: str
    payload: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BatchInfo:
    """A batch as it is now; the eight counts by state make up the total, exactly."""

    id: int
    tenant: str | None
    state: State
    type: str
    """Of the children that came with it."""
    total: int
    scheduled: int
    blocked: int
    pending: int
    running: int
    succeeded: int
    partial: int
    failed: int
    canceled: int
    cancel_requested: bool
    callback_id: int | None
    created_at: datetime
    finished_at: datetime | None
