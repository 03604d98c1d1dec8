"""Fixtures: one server for the whole run, a fresh database for each test.

A test run without a PostgreSQL fails: it never skips. The first test that wants a database starts the server.
"""

import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from psycopg import conninfo
from xdist.scheduler import LoadScopeScheduling

from dispatcher import migrate
from dispatcher.embedded import EmbeddedPostgres, EmbeddedPostgresError, find_binaries
from dispatcher.embedded_binaries import major_version
from tests import servers

# A bound on an example's time, or on what generating it takes, tests how busy the machine is.
settings.register_profile("untimed", parent=settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
# What the developer's shell has set must not reach the code under test.
for _name in list(os.environ):
    if _name.startswith(("DISPATCHER_", "PG")) and not _name.startswith(
        ("DISPATCHER_TEST_", "DISPATCHER_POSTGRES_BIN")
    ):
        del os.environ[_name]
os.environ.pop("DATABASE_URL", None)
# A shell's background jobs ignore SIGINT, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    try:
        bindir = servers.binaries() or find_binaries()
    except EmbeddedPostgresError as exc:
        return f"PostgreSQL: {exc}"
    return f"PostgreSQL {major_version(bindir)} in {bindir}"


class Apart(LoadScopeScheduling):  # type: ignore[misc] # no types come with it
    """Replicas have deadlines to keep: two tests that start some do not run side by side."""

    def _split_scope(self, nodeid: str) -> str:
        return "system" if nodeid.startswith("tests/system/") else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Apart:
    return Apart(config, log)


@pytest.fixture(scope="session")
def pristine() -> Iterator[Path]:
    """The data folder of a stopped server with our role and a migrated database: initdb takes a second."""
    # Not pytest's folder, which root's PostgreSQL cannot enter as another user. In memory if there is room
    # (containers often give 64 MB): removing files that a server had synced took a second on a disk.
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**30
    with tempfile.TemporaryDirectory(prefix="pgd-tests-", dir=memory if roomy else "/tmp") as folder:
        Path(folder).chmod(0o711)
        data = Path(folder, "data")
        with EmbeddedPostgres(data, bindir=servers.binaries(), durable=False) as server:
            servers.add_role(server)
            servers.add_database(server, name=servers.MIGRATED)
            migrate.migrate(servers.role_dsn(server, servers.MIGRATED))
        yield data


@pytest.fixture(scope="session")
def server(pristine: Path) -> Iterator[EmbeddedPostgres]:
    """The server that all tests share: do not restart it, take `postgres` for that."""
    with servers.copy_of(pristine, "shared", durable=False) as shared:
        yield shared


@pytest.fixture
def dsn(server: EmbeddedPostgres) -> Iterator[str]:
    """A fresh migrated database, as an ordinary role that owns it."""
    name = servers.add_database(server, template=servers.MIGRATED)
    yield servers.role_dsn(server, name)
    servers.drop_database(server, name)


@pytest.fixture
def empty_dsn(server: EmbeddedPostgres) -> Iterator[str]:
    """A fresh database without our schema, as an ordinary role that owns it."""
    name = servers.add_database(server)
    yield servers.role_dsn(server, name)
    servers.drop_database(server, name)


@pytest.fixture
def superuser_dsn(server: EmbeddedPostgres, dsn: str) -> str:
    """The database of `dsn`, as the superuser."""
    return conninfo.make_conninfo(dsn, user=conninfo.conninfo_to_dict(server.dsn)["user"])


@pytest.fixture
def conn(dsn: str) -> Iterator[psycopg.Connection]:
    """A connection to the database of `dsn`, in autocommit."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


@pytest.fixture
def postgres(pristine: Path) -> Iterator[EmbeddedPostgres]:
    """A server of the test's own to restart or kill, on TCP too; durable, as crashes are what it is for."""
    with servers.copy_of(pristine, secrets.token_hex(6), tcp=True) as own:
        yield own
    shutil.rmtree(own.data_dir)


@pytest.fixture
def postgres_dsn(postgres: EmbeddedPostgres) -> str:
    """A migrated database on the test's own server, by TCP on 127.0.0.1, as an ordinary role that owns it."""
    name = servers.add_database(postgres, template=servers.MIGRATED)
    return conninfo.make_conninfo(postgres.tcp_dsn, user=servers.ROLE, password=servers.PASSWORD, dbname=name)
