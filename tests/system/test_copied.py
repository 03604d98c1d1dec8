"""A copy of the database, on the same server or on another, and replicas of both on one host."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher.embedded import EmbeddedPostgres, find_binaries
from tests import servers
from tests.system.replicas import ROOT, Fleet, overlaps, until

pytestmark = pytest.mark.system


@pytest.fixture
def copied(server: EmbeddedPostgres) -> Iterator[str]:
    """An empty database, for `copy_to`."""
    name = servers.add_database(server)
    yield servers.role_dsn(server, name)
    servers.drop_database(server, name)


def copy_to(copied: str, dsn: str) -> None:
    """Dumps a database and restores it."""
    tools = servers.binaries() or find_binaries()
    with subprocess.Popen([str(tools / "pg_dump"), "-d", dsn], stdout=subprocess.PIPE) as dump:
        restore = [str(tools / "psql"), "--quiet", "--output=/dev/null", "--set=ON_ERROR_STOP=1", "-d", copied]
        subprocess.run(restore, stdin=dump.stdout, check=True)
    assert dump.returncode == 0


def test_a_replica_of_a_copied_database_does_not_kill_those_of_the_original(
    copied: str, dsn: str, tmp_path: Path
) -> None:
    with Fleet(dsn, tmp_path) as original:
        leader = original.start_leader()
        [id] = original.enqueue("hold", until=str(original.gate()))
        original.until_started([id])
        copy_to(copied, dsn)
        (tmp_path / "copy").mkdir()
        with Fleet(copied, tmp_path / "copy") as copy:
            other = copy.start_leader(orphan_after="1s", shutdown_grace="400ms")
            until(lambda: copy.query("select id from dispatcher.replica") == [(other.id,)], "what is not there is gone")
            copy.until_started([id])
            time.sleep(0.3)  # what is looked for is that nothing happens
            assert leader.alive
        original.gate().touch()
        original.until_all([id])
        assert original.job(id)["attempt"] == 1
        assert not overlaps(original.events())


def test_a_copy_that_is_taken_from_its_original_as_documented_starts_nothing(
    copied: str, dsn: str, tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "postgresql.md").read_text()
    steps = page.partition("is started on a copy:")[2].partition("```sql")[2].partition("```")[0]
    (tmp_path / "copy").mkdir()
    with Fleet(dsn, tmp_path) as original:
        leader = original.start_leader()
        original.query("select dispatcher.add_schedule('often', '* * * * *', 'quick')")
        original.query("select dispatcher.pause('quick')")
        pending = original.enqueue("quick")
        copy_to(copied, dsn)
        leader.close()
    with Fleet(copied, tmp_path / "copy") as copy:
        copy.conn.execute(steps.encode())
        assert copy.value("select count(*) from dispatcher.schedule where paused_at is null") == 0
        before = copy.value("select count(*) from dispatcher.job")
        copy.start_leader(orphan_after="1s", shutdown_grace="400ms")
        time.sleep(1.5)  # what is looked for is that nothing happens
        assert copy.states(pending) == {pending[0]: "pending"}
        assert copy.value("select count(*) from dispatcher.job") == before
        assert not copy.events()
