"""Migrations: forward only, numbered, each applied once, under a lock, so that ten replicas may start at once."""

from __future__ import annotations

import psycopg

from dispatcher.db import Connection, connect, first_line
from dispatcher.errors import GRANT_HINT, SchemaError, UnsupportedServer
from dispatcher.sql import migrations, statement

LATEST = migrations()[-1][0]


def migrate(dsn: str) -> list[str]:
    """Brings the database to this version's schema; returns the names of the migrations it applied."""
    with connect(dsn, name="dispatcher migrate") as conn:
        _require_server(conn)
        try:
            with conn.transaction():
                conn.execute(statement("lock_migrations"))
                conn.execute(statement("make_migration_table"))
                conn.execute(statement("become_owner"))
                applied = [_apply(conn, *step) for step in pending(conn)]
                conn.execute(statement("apply_access"))
                return applied
        except psycopg.errors.ReadOnlySqlTransaction as exc:
            raise UnsupportedServer(
                "the server is read-only, most likely a standby: give the primary's address"
            ) from exc
        except psycopg.errors.InsufficientPrivilege as exc:
            raise SchemaError(
                f"migrate needs more rights ({first_line(exc)}): run it as a role that may create schemas"
            ) from exc
        except psycopg.Error as exc:
            raise SchemaError(f"migrate failed, nothing was changed: {first_line(exc)}") from exc


def missing(dsn: str) -> list[str]:
    """Names of the migrations that the database lacks; raises SchemaError where it is ahead of this version."""
    with connect(dsn, name="dispatcher migrate --check") as conn:
        _require_server(conn)
        return [_title(version, name) for version, name, _ in pending(conn)]


def pending(conn: Connection) -> list[tuple[int, str, str]]:
    """The migrations still to be applied, in order."""
    applied = applied_versions(conn)
    if ahead := sorted(applied - {version for version, _, _ in migrations()}):
        raise SchemaError(
            f"the schema has version {ahead[-1]}, this dispatcher knows up to {LATEST}: install a newer dispatcher"
        )
    return [step for step in migrations() if step[0] not in applied]


def require_current(conn: Connection) -> None:
    """Raises SchemaError unless the schema is this version's."""
    if todo := pending(conn):
        names = ", ".join(_title(version, name) for version, name, _ in todo)
        raise SchemaError(f"the database lacks {names}: run `dispatcher migrate` first")


def applied_versions(conn: Connection) -> set[int]:
    """The versions recorded in the database; none where the schema is missing."""
    try:
        return {version for (version,) in conn.execute(statement("list_migrations"))}
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
