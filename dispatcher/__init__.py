"""A leader-elected background-job dispatcher on PostgreSQL."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dispatcher.batch import BatchInfo, Callback
from dispatcher.errors import (
    AccessDenied,
    ApiUnavailable,
    AttemptLost,
    DatabaseUnavailable,
    DispatcherError,
    EnqueueError,
    ExecutorError,
    InvalidOption,
    InvalidPayload,
    InvalidSchedule,
    JobFailed,
    JobNotFound,
    PayloadTooLarge,
    ResultTooLarge,
    ScheduleNotFound,
    SchemaError,
    SettingsError,
    StoreError,
    TooManyJobs,
    UniqueConflict,
    UnknownType,
    UnsafeTransaction,
    UnsupportedServer,
    WrongState,
)

# Not lazily: the decorator has its module's name, and has to be bound after the module, once and for all.
from dispatcher.executor import Cancel, Executor, Fail, Partial, Registry, Retry, Snooze, executor
from dispatcher.job import CancelReason, Job, JobInfo, Page, State
from dispatcher.retry import Backoff

if TYPE_CHECKING:
    from dispatcher.async_client import AsyncClient
    from dispatcher.client import Client
    from dispatcher.context import Context
    from dispatcher.outcome import JobError
    from dispatcher.process import ProgramResult, clean_environment, run_program
    from dispatcher.queries.explain import Explanation, Reason
    from dispatcher.queries.schedules import ScheduleInfo
    from dispatcher.queries.stats import Quantiles, TypeStats, WindowStats
    from dispatcher.version import __version__

__all__ = [
    "AccessDenied",
    "ApiUnavailable",
    "AsyncClient",
    "AttemptLost",
    "Backoff",
    "BatchInfo",
    "Callback",
    "Cancel",
    "CancelReason",
    "Client",
    "Context",
    "DatabaseUnavailable",
    "DispatcherError",
    "EnqueueError",
    "Executor",
    "ExecutorError",
    "Explanation",
    "Fail",
    "InvalidOption",
    "InvalidPayload",
    "InvalidSchedule",
    "Job",
    "JobError",
    "JobFailed",
    "JobInfo",
    "JobNotFound",
    "Page",
    "Partial",
    "PayloadTooLarge",
    "ProgramResult",
    "Quantiles",
    "Reason",
    "Registry",
    "ResultTooLarge",
    "Retry",
    "ScheduleInfo",
    "ScheduleNotFound",
    "SchemaError",
    "SettingsError",
    "Snooze",
    "State",
    "StoreError",
    "TooManyJobs",
    "TypeStats",
    "UniqueConflict",
    "UnknownType",
    "UnsafeTransaction",
    "UnsupportedServer",
    "WindowStats",
    "WrongState",
    "__version__",
    "clean_environment",
    "executor",
    "run_program",
]

# These bring psycopg along, slower to import than all the rest: a module of executors does not need it.
_LAZY = {
    "AsyncClient": "dispatcher.async_client",
    "Client": "dispatcher.client",
    "Context": "dispatcher.context",
    "Explanation": "dispatcher.queries.explain",
    "JobError": "dispatcher.outcome",
    "ProgramResult": "dispatcher.process",
    "Quantiles": "dispatcher.queries.stats",
    "Reason": "dispatcher.queries.explain",
    "ScheduleInfo": "dispatcher.queries.schedules",
    "TypeStats": "dispatcher.queries.stats",
    "WindowStats": "dispatcher.queries.stats",
    "__version__": "dispatcher.version",
    "clean_environment": "dispatcher.process",
    "run_program": "dispatcher.process",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
