"""Fixtures for pytest: in your conftest.py, `pytest_plugins = ["dispatcher.testing.plugin"]`."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import conninfo, sql

from dispatcher import migrate
from dispatcher.embedded import EmbeddedPostgres
from dispatcher.executor import Registry
from dispatcher.testing.queue import Queue

TEMPLATE = "dispatcher_template"


@pytest.fixture(scope="session")
def dispatcher_server() -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL for the whole run, gone at its end. Override `dispatcher_dsn` to use one of your own."""
    with EmbeddedPostgres(durable=False) as server:
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            conn.execute(sql.SQL("create database {}").format(sql.Identifier(TEMPLATE)))
        migrate.migrate(conninfo.make_conninfo(server.dsn, dbname=TEMPLATE))
        yield server


@pytest.fixture
def dispatcher_dsn(request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh database for each test, with the dispatcher's schema. Override it: it must belong to the test alone."""
    server: EmbeddedPostgres = request.getfixturevalue("dispatcher_server")
    name = sql.Identifier(database := f"test_{secrets.token_hex(6)}")
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        conn.execute(sql.SQL("create database {} template {}").format(name, sql.Identifier(TEMPLATE)))
        yield conninfo.make_conninfo(server.dsn, dbname=database)
        conn.execute(sql.SQL("drop database {} with (force)").format(name))


@pytest.fixture
def dispatcher_executors() -> Registry | Iterable[Any]:
    """The installed executors. Override it: a list of modules, or of decorated functions and classes."""
    return Registry.load()


@pytest.fixture
def dispatcher_queue(
    dispatcher_dsn: str, dispatcher_executors: Registry | Iterable[Any], tmp_path: Path
) -> Iterator[Queue]:
    """A Queue on `dispatcher_dsn` that runs `dispatcher_executors`, with a store of its own."""
    with Queue(dispatcher_dsn, dispatcher_executors, result_store=str(tmp_path / "store")) as queue:
        yield queue
