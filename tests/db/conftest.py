"""Fixtures of the tests that claim and settle by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher.db import Connection
from tests.db.import_runner import DirectRuntime
from tests.db.running import Settling, publish, session
from tests.db.serving import Served


@pytest.fixture
def lease(dsn: str, conn: Connection) -> Iterator[Connection]:
    """A session that claims."""
    publish(conn)
    with session(dsn) as claiming:
        yield claiming


@pytest.fixture
def settling(dsn: str) -> Iterator[Settling]:
    """A completer that settles what it is given."""
    settling = Settling(dsn)
    yield settling
    settling.completer.close()


@pytest.fixture
def api(dsn: str, conn: Connection) -> Iterator[Served]:
    """A server of the HTTP API; the types quick and slow are known, and nobody runs them."""
    publish(conn)
    with Served(dsn) as served:
        yield served


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that imports may read."""
    folder = tmp_path / "imports"
    folder.mkdir()
    monkeypatch.setenv("DISPATCHER_IMPORT_ROOT", str(folder))
    return folder


@pytest.fixture
def runtime(dsn: str) -> DirectRuntime:
    """What a job is lent, without a daemon."""
    return DirectRuntime(dsn)
