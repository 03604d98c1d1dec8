"""The disk of PostgreSQL is full: what ran ends, what ended is recorded once there is room, and nobody hurries."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from dispatcher.embedded import EmbeddedPostgres
from tests.system.api_process import ApiProcess, caller
from tests.system.exhausted import Watch, fill, free, small_disk, unready
from tests.system.replicas import ROOT, Fleet, overlaps, until

pytestmark = pytest.mark.system
JOBS = {"executors": "tests.system.fault_jobs,tests.system.exhausted_jobs"}
LARGE = {"text": os.urandom(100_000).hex()}


@pytest.fixture
def disk(postgres: EmbeddedPostgres, postgres_dsn: str) -> Iterator[Path]:
    """The disk on which the database lies; WAL lies elsewhere."""
    with small_disk(postgres, 40) as path:
        with psycopg.connect(postgres.dsn, autocommit=True) as admin:
            name = psycopg.conninfo.conninfo_to_dict(postgres_dsn)["dbname"]
            admin.execute(sql.SQL("create tablespace small location {}").format(sql.Literal(str(path))))
            admin.execute(sql.SQL("alter database {} set tablespace small").format(sql.Identifier(str(name))))
        yield path


@pytest.fixture
def fleet(postgres_dsn: str, disk: Path, tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(postgres_dsn, tmp_path) as fleet:
        yield fleet


def enqueue_by_command(dsn: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dispatcher", "enqueue", "quick", "-"]
    environment = {**os.environ, "DISPATCHER_DSN": dsn}
    payload = f'{{"text": "{LARGE["text"]}"}}'
    return subprocess.run(
        command, input=payload, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_outcomes_wait_for_room_on_a_full_disk_and_are_recorded_once(
    postgres: EmbeddedPostgres, fleet: Fleet, disk: Path
) -> None:
    leader, standby = fleet.start_pair(**JOBS)
    ids = fleet.enqueue("bulky", 3, until=str(fleet.gate())) + fleet.enqueue("hold", until=str(fleet.gate("late")))
    fleet.until_started(ids)
    fill(disk)
    with pytest.raises(psycopg.errors.DiskFull):
        fleet.enqueue("quick", text=LARGE["text"])
    fleet.gate().touch()
    until(lambda: leader.metric("dispatcher_db_errors_total"), "an outcome found no room")
    Watch(fleet, leader, standby).expect_calm(7.0)
    until(lambda: "recording" in unready(leader), "/readyz says that nothing can be recorded")
    assert "room" in unready(leader)["recording"] or "No space left" in unready(leader)["recording"]
    assert set(fleet.states(ids).values()) == {"running"}
    free(disk)
    fleet.gate("late").touch()
    fleet.until_all(ids + fleet.enqueue("quick", 20))
    assert not overlaps(fleet.events())
    assert {fleet.job(id)["attempt"] for id in ids} == {1}
    until(lambda: not unready(leader), "/readyz says that all is well")
    until(fleet.leader_pid, "one of them leads")
    assert leader.metric("dispatcher_stale_outcomes_total") == 0


def test_a_replica_that_is_told_to_stop_does_not_wait_for_room_and_another_runs_its_jobs_again(
    fleet: Fleet, disk: Path
) -> None:
    leader, standby = fleet.start_pair(**JOBS)
    ids = fleet.enqueue("bulky", 3, until=str(fleet.gate()))
    fleet.until_started(ids)
    fill(disk)
    fleet.gate().touch()
    until(lambda: leader.metric("dispatcher_db_errors_total"), "an outcome found no room")
    leader.send(signal.SIGTERM)
    assert leader.wait(10.0) == 0  # shutdown_grace is 2 s
    until(lambda: fleet.leader_pid() == standby.pid, "the other one leads")
    free(disk)
    fleet.until_all(ids)
    assert not overlaps(fleet.events())


def test_enqueuers_get_one_line_and_503_while_the_disk_is_full(
    postgres: EmbeddedPostgres, fleet: Fleet, disk: Path, tmp_path: Path
) -> None:
    leader = fleet.start_leader(**JOBS)
    with ApiProcess(fleet.dsn, tmp_path).until_serves() as api, caller(api.url, api.token()) as http:
        fill(disk)
        answers = [http.post("/jobs", json={"type": "quick", "payload": LARGE}) for _ in range(20)]
        command = enqueue_by_command(fleet.dsn)
        free(disk)
        assert {answer.status_code for answer in answers} == {503}
        assert {answer.headers["content-type"] for answer in answers} == {"application/problem+json"}
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers)
        assert "does not answer" not in answers[0].json()["detail"]  # it does
        assert len(api.said("No space left")) == 1
        assert command.returncode == 1
        assert len(command.stderr.splitlines()) == 1
        assert "No space left" in command.stderr
        assert "ended the session" not in command.stderr  # it did not
        created = http.post("/jobs", json={"type": "quick", "payload": LARGE})
        assert created.status_code == 202
        fleet.until_all([created.json()["id"]])
    assert leader.alive


def test_a_full_wal_disk_stops_the_server_and_the_replicas_wait_for_it_to_be_started(
    postgres: EmbeddedPostgres, postgres_dsn: str, tmp_path: Path
) -> None:
    with small_disk(postgres, 64) as disk, Fleet(postgres_dsn, tmp_path) as fleet:
        postgres.stop()
        subprocess.run(["cp", "-a", postgres.data_dir / "pg_wal", disk / "pg_wal"], check=True)
        shutil.rmtree(postgres.data_dir / "pg_wal")
        (postgres.data_dir / "pg_wal").symlink_to(disk / "pg_wal")
        postgres.start()
        leader, standby = fleet.start_pair(orphan_after="60s", **JOBS)
        ids = fleet.enqueue("hold", 3, until=str(fleet.gate()))
        fleet.until_started(ids)
        fill(disk)
        with pytest.raises(psycopg.OperationalError):
            write_wal_for_ever(postgres)
        fleet.gate().touch()
        until(lambda: len(fleet.events("end")) == 3, "the jobs have ended")
        before = {replica.pid: len(replica.log()) for replica in (leader, standby)}
        until(lambda: postgres.pid is None or _accepts(postgres), "the server is down for good or up again")
        free(disk)
        postgres.start()
        until(lambda: _accepts(postgres), "the server is up")
        fleet.reconnect()
        fleet.until_all(ids + fleet.enqueue("quick", 20))
        assert not overlaps(fleet.events())
        assert {fleet.job(id)["attempt"] for id in ids} == {1}
        assert all(len(replica.log()) - before[replica.pid] < 40 for replica in (leader, standby))


def write_wal_for_ever(server: EmbeddedPostgres) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        while True:
            admin.execute("select pg_logical_emit_message(false, 'fill', repeat('x', 1000000))")


def _accepts(server: EmbeddedPostgres) -> bool:
    with suppress(psycopg.OperationalError), psycopg.connect(server.dsn, connect_timeout=2):
        return True
    return False
