"""Migrations of a database that is in use, and migrations that are killed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from dispatcher.sql import migrations, statement

from dispatcher import migrate
from dispatcher.errors import SchemaError
from tests.db.running import value

ROOT = Path(__file__).parents[2]
NEW = [f"{version:04d}_{name}" for version, name, _ in migrations() if version > migrate.PREVIOUS]
LONGEST_WAIT_S = 2.0  # the first tries, on a busy machine
KILLED = """
import os, signal, sys
from dispatcher import migrate

def apply(conn, version, name, text):
    conn.execute(text.encode(), prepare=False)
    if version == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return done(conn, version, name, "select 1")

done, migrate._apply = migrate._apply, apply
migrate.migrate(sys.argv[1])
"""


@pytest.fixture
def old_dsn(empty_dsn: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database with the schema of the previous release, and a type."""
    with monkeypatch.context() as patch:
        patch.setattr(migrate, "migrations", lambda: migrations()[: migrate.PREVIOUS])
        # What grants rights is newer.
        patch.setattr(migrate, "statement", lambda name: b"select 1" if name == "apply_access" else statement(name))
        migrate.migrate(empty_dsn)
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute("drop table dispatcher.recent_migration")
        conn.execute(
            "insert into dispatcher.type (name, timeout_s, max_attempts, max_payload_bytes)"
            " values ('mail', 60, 3, 1000)"
        )
    return empty_dsn


@pytest.mark.parametrize("version", [version for version, _, _ in migrations() if version > migrate.PREVIOUS])
def test_kill_9_in_the_middle_of_a_migration_leaves_the_old_schema_at_work_and_the_next_try_does_all(
    old_dsn: str, version: int
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", KILLED, old_dsn, str(version)], env=environment, check=False)
    assert done.returncode == -9
    with psycopg.connect(old_dsn, autocommit=True) as conn:
        assert value(conn, "select dispatcher.enqueue('mail')")
        assert migrate.missing(old_dsn) == NEW
        assert migrate.migrate(old_dsn) == NEW
        assert value(conn, "select dispatcher.enqueue('mail')")
    assert migrate.migrate(old_dsn) == []


def test_two_migrations_at_once_are_one(old_dsn: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        applied = list(pool.map(migrate.migrate, [old_dsn] * 2))
    assert sorted(applied, key=len) == [[], NEW]


def test_migration_that_waits_for_an_open_transaction_holds_up_no_enqueuer_for_long(old_dsn: str) -> None:
    with psycopg.connect(old_dsn) as holder, psycopg.connect(old_dsn, autocommit=True) as other:
        holder.execute("select dispatcher.enqueue('mail')")
        with ThreadPoolExecutor(1) as pool:
            migration = pool.submit(migrate.migrate, old_dsn)
            waits: list[float] = []
            tried = False
            while not tried or len(waits) < 100:
                began = time.monotonic()
                other.execute("select dispatcher.enqueue('mail')")
                waits.append(time.monotonic() - began)
                tried = tried or waits[-1] > 0.1  # it stood behind a try
                assert not migration.done()
            holder.rollback()
            assert migration.result(timeout=30) == NEW
    assert max(waits) < LONGEST_WAIT_S


def test_migration_names_the_session_that_is_in_its_way(old_dsn: str) -> None:
    with psycopg.connect(old_dsn, application_name="report") as holder:
        holder.execute("select count(*) from dispatcher.job")
        with pytest.raises(SchemaError) as caught:
            migrate.migrate(old_dsn, patience_s=0)
        pid = holder.info.backend_pid
    assert f"session {pid} (report, role app)" in str(caught.value)
    assert "nothing was changed" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert migrate.missing(old_dsn) == NEW


def test_nobody_who_works_with_jobs_is_ended_for_a_deadlock_with_a_migration(old_dsn: str) -> None:
    stop = threading.Event()

    def work(number: int) -> int:
        rounds = 0
        with psycopg.connect(old_dsn, autocommit=True) as conn:
            while not stop.is_set():
                with conn.transaction():
                    steps: list[Any] = [
                        "select dispatcher.enqueue('mail')",
                        "select 1 from dispatcher.type",
                        "select state from dispatcher.jobs where id = 1",
                        "select dispatcher.enqueue('mail')",
                    ]
                    for step in steps[number % 4 :] + steps[: number % 4]:
                        conn.execute(step)
                rounds += 1
                stop.wait(0.01)
        return rounds

    with ThreadPoolExecutor(5) as pool:
        workers = [pool.submit(work, number) for number in range(4)]
        try:
            assert migrate.migrate(old_dsn) == NEW
        finally:
            stop.set()
        assert all(worker.result(timeout=30) for worker in workers)


def test_older_version_may_run_on_a_schema_whose_later_migrations_do_not_demand_to_be_known(
    dsn: str, conn: psycopg.Connection[Any]
) -> None:
    conn.execute("insert into dispatcher.recent_migration (version, name) values (9001, 'of_the_future')")
    migrate.require_current(conn)
    assert migrate.missing(dsn) == []
    assert migrate.migrate(dsn) == []


def test_0_1_0_sees_nothing_that_it_does_not_know(conn: psycopg.Connection[Any]) -> None:
    """Its replicas refuse to start on anything else."""
    assert conn.execute("select version from dispatcher.migration").fetchall() == [(1,)]
