"""Statements of the clients about types, replicas and the lease, as operations."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from dispatcher.errors import InvalidOption
from dispatcher.outcome import encode
from dispatcher.queries.operation import Operation, Query


@dataclass(frozen=True, slots=True)
class TypeInfo:
    """A type of job: as the replicas have published it, and what an operator said, which goes before that.

    `…_from` is `database` for what an operator said, `code` for what the code or the replicas' settings say.
    """

    name: str
    limit: int | None
    timeout: timedelta
    max_attempts: int
    max_payload_bytes: int
    payload_schema: dict[str, Any] | None
    description: str
    published_at: datetime
    limit_from: str | None
    tenant_limit: int | None
    tenant_limit_from: str | None
    rate: float | None
    """Starts a second."""
    rate_from: str | None
    burst: int | None
    burst_from: str | None
    paused_at: datetime | None
    paused_by: str | None
    tenant_limits: dict[str, int]
    """Of single tenants."""
    pool: str
    """Where its jobs run: thread, async, process or dask."""


@dataclass(frozen=True, slots=True)
class ReplicaInfo:
    """A replica: one running daemon, or one that is gone and not yet removed."""

    id: int
    lease: str
    host: str
    pid: int
    version: str
    types: list[str]
    started_at: datetime
    alive: bool
    leads: bool
    running: int


@dataclass(frozen=True, slots=True)
class LeaderInfo:
    """Who leads, in which term, since when."""

    lease: str
    term: int
    replica: int
    host: str | None
    pid: int | None
    version: str | None
    since: datetime


def list_types() -> Operation[list[TypeInfo]]:
    """All types, by name."""
    rows = yield Query("list_types", reads=True)
    return [
        TypeInfo(*row[:2], timedelta(seconds=row[2]), *row[3:-2], row[-2] or {}, row[-1])  # type: ignore[call-arg] # as selected
        for row in rows
    ]


def pause_type(type: str) -> Operation[bool]:
    """Whether it was not paused before."""
    rows = yield Query("pause_type", {"type": type})
    return bool(rows[0][0])


def resume_type(type: str) -> Operation[bool]:
    """Whether it was paused."""
    rows = yield Query("resume_type", {"type": type})
    return bool(rows[0][0])


def set_limit(type: str, changes: dict[str, Any], tenant: str | None) -> Operation[None]:
    """Changes these of limit, tenant_limit, rate and burst; raises InvalidOption."""
    options = changes if tenant is None else {**changes, "tenant": tenant}
    try:
        encoded = encode(options)
    except (TypeError, ValueError) as exc:
        raise InvalidOption(f"these limits cannot be sent: {exc}") from None
    yield Query("set_limit", {"type": type, "options": encoded})


def get_payload_schema(type: str) -> Operation[tuple[bool, Any]]:
    """(whether the type is known, its payload's JSON Schema or None)."""
    rows = yield Query("get_payload_schema", {"type": type}, reads=True)
    return (True, rows[0][0]) if rows else (False, None)


def show_replicas() -> Operation[list[ReplicaInfo]]:
    """All replicas of all leases."""
    rows = yield Query("show_replicas", reads=True)
    return [ReplicaInfo(*row) for row in rows]


def show_lease(name: str) -> Operation[LeaderInfo | None]:
    """The leader, or None while nobody holds the lease."""
    rows = yield Query("show_lease", {"name": name}, reads=True)
    if not rows:
        return None
    lease, term, holder, taken_at, host, pid, version, held = rows[0]
    return LeaderInfo(lease, term, holder, host, pid, version, taken_at) if held and holder is not None else None


def ask_to_resign(name: str) -> Operation[tuple[int, int] | None]:
    """(replica, term) of the holder that was asked, or None without one."""
    rows = yield Query("ask_to_resign", {"name": name})
    return (rows[0][1], rows[0][2]) if rows else None
