"""Migrations: each once, under a lock, all or nothing, and never backwards."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest
from dispatcher.sql import migrations
from psycopg import conninfo

from dispatcher import migrate
from dispatcher.db import SessionLimits, connect_session
from dispatcher.embedded import EmbeddedPostgres
from dispatcher.errors import SchemaError
from tests.db.running import value

TITLES = [f"{version:04d}_{name}" for version, name, _ in migrations()]
Steps = list[tuple[int, str, str]]


def with_more(monkeypatch: pytest.MonkeyPatch, *more: tuple[int, str, str]) -> None:
    """As if this version of the code had these migrations, too."""
    steps = [*migrations(), *more]
    monkeypatch.setattr(migrate, "migrations", lambda: steps)


def test_ten_at_once_apply_each_migration_once(empty_dsn: str) -> None:
    go, applied, errors = threading.Barrier(10), [], []

    def run() -> None:
        go.wait()
        try:
            applied.extend(migrate.migrate(empty_dsn))
        except SchemaError as exc:
            errors.append(exc)

    replicas = [threading.Thread(target=run) for _ in range(10)]
    for replica in replicas:
        replica.start()
    for replica in replicas:
        replica.join()
    assert not errors
    assert applied == TITLES
    assert migrate.missing(empty_dsn) == []
    with psycopg.connect(empty_dsn) as conn:
        assert value(conn, "select count(*) from dispatcher.recent_migration") == len(TITLES) - migrate.PREVIOUS
        assert value(conn, "select count(*) from dispatcher.lease") == 1


def test_check_names_what_is_missing_and_changes_nothing(empty_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert migrate.missing(empty_dsn) == TITLES
    with psycopg.connect(empty_dsn) as conn:
        assert value(conn, "select to_regnamespace('dispatcher') is null")
    migrate.migrate(empty_dsn)
    assert migrate.missing(empty_dsn) == []
    with_more(monkeypatch, (9001, "next", "select 1"), (9002, "last", "select 1"))
    assert migrate.missing(empty_dsn) == ["9001_next", "9002_last"]
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        with pytest.raises(SchemaError, match="lacks 9001_next, 9002_last"):
            migrate.require_current(conn)
        assert migrate.migrate(empty_dsn) == ["9001_next", "9002_last"]
        migrate.require_current(conn)


def test_newer_schema_is_refused_and_left_alone(dsn: str, conn: psycopg.Connection[Any]) -> None:
    conn.execute("insert into dispatcher.migration (version, name) values (9001, 'of_the_future')")
    for attempt in (migrate.migrate, migrate.missing):
        with pytest.raises(SchemaError, match="version 9001"):
            attempt(dsn)
    with pytest.raises(SchemaError, match="version 9001"):
        migrate.require_current(conn)
    assert value(conn, "select max(version) from dispatcher.migration") == 9001


@pytest.mark.parametrize(
    "broken",
    [
        "create table dispatcher.half (); select 1 / 0",
        "create table dispatcher.half (); create tabel dispatcher.rest ()",
        "create table dispatcher.half (); insert into dispatcher.half values (1)",
    ],
)
def test_failed_migration_leaves_nothing(empty_dsn: str, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    with_more(monkeypatch, (9001, "good", "create table dispatcher.good ()"), (9002, "broken", broken))
    with pytest.raises(SchemaError, match="nothing was changed") as caught:
        migrate.migrate(empty_dsn)
    assert len(str(caught.value).splitlines()) == 1
    with psycopg.connect(empty_dsn) as conn:
        assert value(conn, "select to_regnamespace('dispatcher') is null")


def test_killed_migration_leaves_nothing_and_the_next_one_works(
    empty_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    suicide = "create table dispatcher.half (); select pg_terminate_backend(pg_backend_pid())"
    with monkeypatch.context() as patch:
        with_more(patch, (9001, "suicide", suicide))
        with pytest.raises(SchemaError) as caught:
            migrate.migrate(empty_dsn)
        assert len(str(caught.value).splitlines()) == 1
    assert migrate.migrate(empty_dsn) == TITLES


def test_role_without_rights_is_one_line(server: EmbeddedPostgres, superuser_dsn: str, empty_dsn: str) -> None:
    name = "stranger_" + str(conninfo.conninfo_to_dict(empty_dsn)["dbname"]).removeprefix("test_")
    with psycopg.connect(superuser_dsn, autocommit=True) as admin:
        admin.execute(f"create role {name} login".encode())
        try:
            for database in (superuser_dsn, empty_dsn):
                with pytest.raises(SchemaError) as caught:
                    migrate.migrate(conninfo.make_conninfo(database, user=name))
                assert len(str(caught.value).splitlines()) == 1
                assert "right" in str(caught.value)
            with pytest.raises(SchemaError, match="may not read"):
                migrate.missing(conninfo.make_conninfo(superuser_dsn, user=name))
        finally:
            admin.execute(f"drop role {name}".encode())


def test_no_superuser_is_needed(empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn) as conn:
        assert not value(conn, "select rolsuper from pg_roles where rolname = current_user")
    migrate.migrate(empty_dsn)
    with connect_session(empty_dsn, name="test", limits=SessionLimits()) as daemon:
        assert value(daemon, "select held from dispatcher.wait_lease(1, 100)")


def test_nothing_lies_outside_our_schema(empty_dsn: str) -> None:
    query = """select count(*) from pg_class c join pg_namespace n on n.oid = c.relnamespace
               where n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast', 'dispatcher')"""
    migrate.migrate(empty_dsn)
    with psycopg.connect(empty_dsn) as conn:
        assert value(conn, query) == 0


def test_versions_are_numbered_without_a_gap() -> None:
    assert [version for version, _, _ in migrations()] == list(range(1, len(migrations()) + 1))
