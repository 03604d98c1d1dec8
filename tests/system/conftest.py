"""What most tests with real processes begin with. A test file that needs another `fleet` has its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg import conninfo

from dispatcher.embedded import EmbeddedPostgres
from tests.proxy import TcpProxy
from tests.standby import Pair, standby_of
from tests.system.replicas import Fleet


@pytest.fixture
def fleet(dsn: str, tmp_path: Path) -> Iterator[Fleet]:
    """Replicas on a database of the test's own."""
    with Fleet(dsn, tmp_path) as fleet:
        yield fleet


@pytest.fixture
def proxy(postgres_dsn: str) -> Iterator[TcpProxy]:
    """The network before a server of the test's own."""
    with TcpProxy("127.0.0.1", int(str(conninfo.conninfo_to_dict(postgres_dsn)["port"]))) as proxy:
        yield proxy


@pytest.fixture
def pair(postgres: EmbeddedPostgres, postgres_dsn: str) -> Iterator[Pair]:
    """A server of the test's own, with the test's database, and a standby of it."""
    with standby_of(postgres) as pair:
        yield pair
