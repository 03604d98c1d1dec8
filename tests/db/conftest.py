"""Fixtures of the tests that claim and settle by themselves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dispatcher.db import Connection
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
