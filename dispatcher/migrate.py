"""Migrations: forward only, numbered, each applied once, under a lock, so that ten replicas may start at once.

The replicas of the previous release go on, and may start, on this version's schema: so a fleet is upgraded one by one,
and may go back. Newer versions' migrations, as long as they do not demand to be known, are none of this one's business.
"""

from __future__ import annotations

import time

import psycopg

from dispatcher.db import Connection, connect, first_line
from dispatcher.errors import GRANT_HINT, SchemaError, UnsupportedServer
from dispatcher.sql import migrations, statement

LATEST = migrations()[-1][0]
PREVIOUS = 1
"""The schema version of the previous release, 0.1.0: who does not know it is shut out."""

PATIENCE_S = 120.0
# Who comes while a migration waits for the tables' locks stands behind it: so it waits only so long in one try,
FIRST_WAIT_S, LONGEST_WAIT_S, GROWTH = 0.3, 0.9, 1.2
PAUSE = 2.0  # and then lets others get on for so many times as long.


def migrate(dsn: str, *, patience_s: float = PATIENCE_S) -> list[str]:
    """Brings the database to this version's schema; returns the names of the migrations it applied.

    All or nothing. It waits for open transactions that have used the tables, without holding up others for long;
    raises SchemaError once it has waited for `patience_s`.
    """
    deadline = time.monotonic() + patience_s
    with connect(dsn, name="dispatcher migrate") as conn:
        _require_server(conn)
        wait_s = FIRST_WAIT_S
        while (applied := _try(conn, wait_s, last=time.monotonic() > deadline)) is None:
            time.sleep(PAUSE * wait_s)
            wait_s = min(LONGEST_WAIT_S, GROWTH * wait_s)
        return applied


def _try(conn: Connection, wait_s: float, *, last: bool) -> list[str] | None:
    """One try; None where somebody else's locks were in the way, unless it is the last one."""
    try:
        with conn.transaction():
            return _migrate(conn, wait_s)
    except psycopg.errors.ReadOnlySqlTransaction as exc:
        raise UnsupportedServer("the server is read-only, most likely a standby: give the primary's address") from exc
    except psycopg.errors.InsufficientPrivilege as exc:
        raise SchemaError(
            f"migrate needs more rights ({first_line(exc)}): run it as a role that may create schemas"
        ) from exc
    except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as exc:
        if last:
            raise SchemaError(_in_the_way(conn)) from exc
        return None
    except psycopg.Error as exc:
        raise SchemaError(f"migrate failed, nothing was changed: {first_line(exc)}") from exc


def _migrate(conn: Connection, wait_s: float) -> list[str]:
    for name in ("lock_migrations", "make_schema", "become_owner", "make_migration_tables"):
        conn.execute(statement(name))
    todo = pending(conn)
    if todo:
        conn.execute(statement("limit_lock_wait"), {"wait_s": wait_s})
        conn.execute(statement("lock_tables"))
    applied = [_apply(conn, *step) for step in todo]
    conn.execute(statement("demand_migrations"), {"version": PREVIOUS})
    conn.execute(statement("apply_access"))
    return applied


def _in_the_way(conn: Connection) -> str:
    row = conn.execute(statement("find_lock_holder")).fetchone()
    who = "an open transaction"
    if row is not None:
        pid, application, role, seconds = row
        who = f"session {pid} ({application}, role {role}), in a transaction that is open since {seconds} s"
    return f"migrate could not lock the tables, nothing was changed: {who} uses them; end it, or try again later"


def missing(dsn: str) -> list[str]:
    """Names of the migrations that the database lacks; raises SchemaError where it demands a newer version."""
    with connect(dsn, name="dispatcher migrate --check") as conn:
        _require_server(conn)
        return [_title(version, name) for version, name, _ in pending(conn)]


def pending(conn: Connection) -> list[tuple[int, str, str]]:
    """The migrations still to be applied, in order."""
    demanded = _versions(conn, "list_migrations")
    if ahead := sorted(demanded - {version for version, _, _ in migrations()}):
        raise SchemaError(
            f"the schema has version {ahead[-1]}, this dispatcher knows up to {LATEST}: install a newer dispatcher"
        )
    applied = demanded | _versions(conn, "list_recent_migrations")
    return [step for step in migrations() if step[0] not in applied]


def require_current(conn: Connection) -> None:
    """Raises SchemaError unless this version can run on the schema."""
    if todo := pending(conn):
        names = ", ".join(_title(version, name) for version, name, _ in todo)
        raise SchemaError(f"the database lacks {names}: run `dispatcher migrate` first")


def _versions(conn: Connection, name: str) -> set[int]:
    try:
        with conn.transaction():
            return {version for (version,) in conn.execute(statement(name))}
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        return set()
    except psycopg.errors.InsufficientPrivilege as exc:
        raise SchemaError(f"this role may not read the dispatcher schema: {GRANT_HINT}") from exc


def _apply(conn: Connection, version: int, name: str, text: str) -> str:
    conn.execute(text.encode(), prepare=False)
    conn.execute(statement("record_migration"), {"version": version, "name": name})
    return _title(version, name)


def _require_server(conn: Connection) -> None:
    number = conn.info.server_version
    if number < 150000:
        raise UnsupportedServer(f"PostgreSQL {number // 10000} is too old: the dispatcher needs PostgreSQL 15 or later")


def _title(version: int, name: str) -> str:
    return f"{version:04d}_{name}"
