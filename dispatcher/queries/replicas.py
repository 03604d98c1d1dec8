"""Statements about replicas: registering, liveness, types."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from dispatcher.db import Connection
from dispatcher.errors import SettingsError
from dispatcher.executor import Executor
from dispatcher.sql import migrations, statement


@dataclass(frozen=True, slots=True)
class Process:
    """What proves, on the same host, that a process is gone."""

    host: str
    pid: int
    boot_id: str | None
    pid_namespace: str | None
    start: str | None
    lock_file: str | None


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica's row, and whether its liveness lock is held."""

    id: int
    incarnation: int
    process: Process
    version: str
    types: tuple[str, ...]
    remote_types: frozenset[str]
    """Those of its types whose jobs may run on when its process is dead."""
    started_at: datetime | None
    present: bool
    at_home: bool
    """Whether it has lived in this database; if not, the row came with a copy of another one."""


def register_replica(
    conn: Connection, *, lease: int, process: Process, version: str, types: list[str], remote_types: list[str]
) -> int:
    """A new replica's id."""
    row = conn.execute(
        statement("register_replica"),
        {
            "lease": lease,
            "host": process.host,
            "pid": process.pid,
            "boot_id": process.boot_id,
            "pid_namespace": process.pid_namespace,
            "process_start": process.start,
            "lock_file": process.lock_file,
            "version": version,
            "schema_version": migrations()[-1][0],
            "types": types,
            "remote_types": remote_types,
        },
    ).fetchone()
    assert row is not None
    return int(row[0])


def registered_at(conn: Connection, replica: int) -> datetime | None:
    """When the replica of this id registered; None where there is none."""
    row = conn.execute(statement("get_registration"), {"replica": replica}).fetchone()
    return None if row is None else row[0]


def set_leaving(conn: Connection, replica: int, *, leaving: bool) -> bool:
    """Records whether this replica does not contend for the lease; False while somebody holds its row."""
    row = conn.execute(statement("set_leaving"), {"replica": replica, "leaving": leaving}).fetchone()
    return row is not None


def take_liveness(conn: Connection, replica: int) -> bool:
    """Takes the liveness lock on this session; False where another session has it."""
    row = conn.execute(statement("take_liveness"), {"replica": replica}).fetchone()
    return row is not None and bool(row[0])


def raise_incarnation(conn: Connection, replica: int) -> int | None:
    """The new incarnation, or None where the replica's row has gone."""
    row = conn.execute(statement("raise_incarnation"), {"replica": replica}).fetchone()
    return None if row is None else int(row[0])


def end_own_session(conn: Connection, replica: int) -> None:
    """Ends an earlier session of this replica that the server still believes alive."""
    conn.execute(statement("end_own_session"), {"replica": replica})


def list_replicas(conn: Connection, lease: int) -> list[Replica]:
    """All replicas of the lease, and owners of claims that have no row."""
    rows = conn.execute(statement("list_replicas"), {"lease": lease})
    return [
        Replica(id, incarnation, Process(*process), version, tuple(types), frozenset(remote), started, present, home)
        for id, incarnation, *process, version, types, remote, started, present, home in rows
    ]


def remove_replica(conn: Connection, replica: int) -> bool:
    """Removes a replica's row and claims, unless one of its jobs still runs."""
    return conn.execute(statement("remove_replica"), {"replica": replica}).fetchone() is not None


def publish_types(
    conn: Connection, executors: Iterable[Executor], *, limits: dict[str, int], timeout_s: float, max_payload_bytes: int
) -> None:
    """Makes the types known; `limits` overrides the executors' own, `timeout_s` is for those that name none."""
    specs = sorted(executors, key=lambda spec: spec.type)
    conn.execute(
        statement("publish_types"),
        {
            "names": [spec.type for spec in specs],
            "limits": [limits.get(spec.type, spec.limit) for spec in specs],
            "tenant_limits": [spec.tenant_limit for spec in specs],
            "rates": [spec.rate for spec in specs],
            "bursts": [spec.burst for spec in specs],
            "timeouts_s": [spec.timeout_s or timeout_s for spec in specs],
            "max_attempts": [spec.retry.max_attempts for spec in specs],
            "schemas": [None if (schema := spec.schema()) is None else json.dumps(schema) for spec in specs],
            "descriptions": [spec.description for spec in specs],
            "pools": [spec.pool for spec in specs],
            "max_payload_bytes": max_payload_bytes,
        },
    )


def find_overlap(conn: Connection, *, lease: int, types: list[str]) -> tuple[str, str] | None:
    """(name of another lease, type) where a living replica of that lease serves one of these types."""
    return conn.execute(statement("find_overlap"), {"lease": lease, "types": types}).fetchone()


def refuse_overlap(conn: Connection, *, lease: int, types: list[str]) -> None:
    """Raises SettingsError where one of these types is another lease's."""
    if overlap := find_overlap(conn, lease=lease, types=types):
        other, type = overlap
        raise SettingsError(
            f"type {type!r} is served under the lease {other!r} already, and two leaders cannot share its limit: "
            "give the replicas of each lease types of their own (setting types)"
        )


def lock_registration(conn: Connection) -> None:
    """Until the end of the transaction no other replica compares its types or registers."""
    conn.execute(statement("lock_registration"))


def notify(conn: Connection, channel: str, payload: str = "") -> None:
    """A word on a channel."""
    conn.execute(statement("notify"), {"channel": channel, "payload": payload})
