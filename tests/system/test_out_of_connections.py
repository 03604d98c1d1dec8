"""PostgreSQL takes no more connections: sessions that stand go on, who cannot record gives the lease away, and all
works by itself once there is room."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from dispatcher.embedded import EmbeddedPostgres
from tests import servers
from tests.system.exhausted import Watch, unready
from tests.system.replicas import ROOT, Fleet, Replica, end_sessions, overlaps, until

pytestmark = pytest.mark.system


@pytest.fixture
def fleet(postgres: EmbeddedPostgres, postgres_dsn: str, tmp_path: Path) -> Iterator[Fleet]:
    """The test itself is a superuser, whom no limit holds."""
    dbname = str(psycopg.conninfo.conninfo_to_dict(postgres_dsn)["dbname"])
    admin_dsn = psycopg.conninfo.make_conninfo(postgres.dsn, dbname=dbname)
    with Fleet(postgres_dsn, tmp_path, admin_dsn=admin_dsn) as fleet:
        yield fleet


def limit_role(fleet: Fleet, connections: int) -> None:
    """How many sessions the replicas' role may open; those that stand are left alone."""
    fleet.conn.execute(f"alter role {servers.ROLE} connection limit {connections}".encode())


def until_recording_fails(replica: Replica) -> None:
    until(lambda: "recording" in unready(replica), "/readyz says that nothing can be recorded")


def test_outcomes_wait_for_a_connection_and_a_leader_that_cannot_record_gives_the_lease_away(
    postgres: EmbeddedPostgres, fleet: Fleet
) -> None:
    leader, standby = fleet.start_pair()
    warm = fleet.enqueue("quick")
    fleet.until_all(warm)
    ids = fleet.enqueue("hold", 3, until=str(fleet.gate()))
    fleet.until_started(ids, pid=leader.pid)
    limit_role(fleet, 1)
    watch = Watch(fleet, leader, standby)
    assert end_sessions(fleet.conn, "dispatcher completer%") == 1
    fleet.gate().touch()
    until_recording_fails(leader)
    assert "too many connections" in unready(leader)["recording"]
    fleet.until_leads(standby)  # whose session stands; it may have one to record by, too
    more = fleet.enqueue("quick", 3)  # or may not
    fleet.until_started(more, pid=standby.pid)
    watch.expect_calm(2.0)
    assert set(fleet.states(ids + more).values()) == {"running"}
    limit_role(fleet, -1)
    fleet.until_all(ids + more + fleet.enqueue("quick", 20))
    assert not overlaps(fleet.events())
    assert {fleet.job(id)["attempt"] for id in ids + more} == {1}
    until(lambda: not unready(leader) and not unready(standby), "/readyz says that all is well")


def test_a_leader_that_cannot_record_claims_nothing_more(fleet: Fleet) -> None:
    leader = fleet.start_leader()
    fleet.until_all(fleet.enqueue("quick"))
    limit_role(fleet, 1)
    end_sessions(fleet.conn, "dispatcher completer%")
    ids = fleet.enqueue("quick", 500)
    until(lambda: leader.metric("dispatcher_db_errors_total"), "it cannot record")
    time.sleep(0.5)  # for claims that were under way
    before = len(fleet.events("start"))
    more = fleet.enqueue("quick", 500)
    until_recording_fails(leader)
    assert len(fleet.events("start")) == before
    assert before < 1000
    limit_role(fleet, -1)
    fleet.until_all(ids + more)
    assert len(fleet.events("start")) == 1001


@pytest.fixture
def few(postgres: EmbeddedPostgres) -> None:
    """A server with room for few sessions."""
    postgres._options["max_connections"] = "30"
    postgres.restart()


def test_replicas_wait_for_a_server_whose_connections_others_have_taken(
    postgres: EmbeddedPostgres, few: None, postgres_dsn: str, fleet: Fleet
) -> None:
    one, other = fleet.start_pair(orphan_after="5s")  # shorter than the outage
    fleet.until_all(fleet.enqueue("quick", 5))
    hogs: list[psycopg.Connection] = []
    try:
        _take_all(fleet, hogs, postgres_dsn)
        ids = fleet.enqueue("quick", 5)
        Watch(fleet, one, other).expect_calm()
        assert set(fleet.states(ids).values()) == {"pending"}
        assert "database" in unready(one)
        assert "database" in unready(other)
        command = [sys.executable, "-m", "dispatcher", "--dsn", postgres_dsn, "enqueue", "quick"]
        told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert told.returncode == 1
        assert len(told.stderr.splitlines()) == 1
        assert "connection slots" in told.stderr or "too many clients" in told.stderr
    finally:
        for hog in hogs:
            hog.close()
    fleet.until_all(ids)
    assert one.alive
    assert other.alive


def test_a_replica_that_starts_without_a_connection_ends_with_one_line_and_systemd_starts_it_again(
    fleet: Fleet,
) -> None:
    limit_role(fleet, 0)
    replica = fleet.launch()
    assert replica.wait() == 1
    assert len(replica.log_file.read_text().splitlines()) == 1
    assert "too many connections" in replica.log_file.read_text()


def _take_all(fleet: Fleet, hogs: list[psycopg.Connection], dsn: str) -> None:
    """Takes what is free and what the replicas have, until they have had none for a while."""
    without = 0
    while without < 10:
        without = 0 if end_sessions(fleet.conn, "dispatcher %") else without + 1
        with suppress(psycopg.OperationalError):
            while True:
                hogs.append(psycopg.connect(dsn, autocommit=True))
        time.sleep(0.05)  # for a slot that was on its way from one to another
