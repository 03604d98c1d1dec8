"""What a replica leaves behind: its jobs run elsewhere only once nothing of them can run here any more."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg import conninfo

from dispatcher.embedded import EmbeddedPostgres
from tests.proxy import TcpProxy
from tests.system.replicas import Fleet, overlaps, until

pytestmark = pytest.mark.system


def start_program(fleet: Fleet) -> tuple[int, int, int]:
    """A job that runs a program: its id, the program and its supervisor."""
    pids, ticks = fleet.folder / "pids", fleet.folder / "ticks"
    [id] = fleet.enqueue("program", 1, pids=str(pids), ticks=str(ticks))
    until(lambda: pids.exists() and ticks.exists(), "the program runs")
    program, supervisor = map(int, pids.read_text(encoding="ascii").split())
    return id, program, supervisor


@contextlib.contextmanager
def frozen(supervisor: int, program: int) -> Iterator[None]:
    """The supervisor is stopped, and whatever is left of both in the end is killed."""
    os.kill(supervisor, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in (program, supervisor):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def last_tick(fleet: Fleet) -> float:
    """When the program was last seen to run, in monotonic seconds; the clocks of file times are coarser."""
    return (fleet.folder / "ticks").stat().st_mtime - time.time() + time.monotonic() - 0.02


def test_job_of_a_killed_replica_waits_until_its_program_is_gone_as_well(fleet: Fleet) -> None:
    """The one that is to kill it is frozen: the death of the replica's process alone proves nothing."""
    leader, standby = fleet.start_pair(orphan_after="60s")
    id, program, supervisor = start_program(fleet)
    with frozen(supervisor, program):
        leader.send(signal.SIGKILL)
        leader.wait()
        fleet.until_leads(standby)
        time.sleep(1.0)  # what is looked for is that nothing happens: several looks at a proof of death
        assert (fleet.states([id]), fleet.job(id)["attempt"]) == ({id: "running"}, 1)
        os.kill(supervisor, signal.SIGCONT)
        fleet.until_all([id])
    assert fleet.events("start", job=id)[1].t > last_tick(fleet)


def test_program_that_outlives_its_replica_is_killed_before_its_job_runs_again(fleet: Fleet) -> None:
    """Nobody on this host waits for ever: past orphan_after what still runs of it is ended, and seen gone."""
    leader, standby = fleet.start_pair()
    id, program, supervisor = start_program(fleet)
    with frozen(supervisor, program):
        leader.send(signal.SIGKILL)
        leader.wait()
        fleet.until_started([id], pid=standby.pid)
        again = fleet.events("start", job=id)[1].t
        fleet.until_all([id])
        assert last_tick(fleet) < again


def test_program_that_heeds_no_stop_is_gone_before_its_job_runs_again(fleet: Fleet) -> None:
    leader, standby = fleet.start_pair(shutdown_grace="400ms", orphan_after="60s")
    id, _, _ = start_program(fleet)
    leader.send(signal.SIGTERM)
    assert leader.wait() == 0
    fleet.until_all([id])
    [_, again] = fleet.events("start", job=id)
    assert again.pid == standby.pid
    assert last_tick(fleet) < again.t


def test_replica_told_to_stop_ends_although_the_database_is_silent(
    postgres: EmbeddedPostgres, postgres_dsn: str, tmp_path: Path
) -> None:
    """It can give nothing back, and a job goes on: the timer that was set before it tried ends both."""
    port = int(str(conninfo.conninfo_to_dict(postgres_dsn)["port"]))
    with TcpProxy("127.0.0.1", port) as proxy, Fleet(postgres_dsn, tmp_path) as fleet:
        timings = {"orphan_after": "60s", "shutdown_grace": "1s", "lease_duration": "3s"}
        far = fleet.start_leader(dsn=conninfo.make_conninfo(postgres_dsn, port=proxy.port), **timings)
        [id] = fleet.enqueue("stubborn", 1, until=str(fleet.gate()))
        fleet.until_started([id])
        near = fleet.start(**timings)
        proxy.pause()
        told = time.monotonic()
        far.send(signal.SIGTERM)
        assert far.wait() == -signal.SIGKILL
        died = time.monotonic()
        assert died - told < 10, "neither the database nor orphan_after was waited for"
        fleet.until_started([id], pid=near.pid)
        fleet.gate().touch()
        fleet.until_all([id])
        assert not overlaps(fleet.events(), {far.pid: died - 0.05})
