"""Two servers that take writes: a former primary that nobody stopped, or that comes back, and the promoted one."""

import signal
import time
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo

from tests.proxy import TcpProxy
from tests.standby import Pair, port_of
from tests.system.failing_over import fail_over
from tests.system.replicas import Fleet, count_sessions, end_sessions, overlaps, until
from tests.timing import quickest

pytestmark = pytest.mark.system


@pytest.fixture
def fleet(pair: Pair, postgres_dsn: str, tmp_path: Path) -> Iterator[Fleet]:
    """A fleet that knows both servers; the test itself is connected to the primary, until `fail_over`."""
    with Fleet(pair.dsn(postgres_dsn), tmp_path, admin_dsn=postgres_dsn) as fleet:
        yield fleet


def test_a_former_primary_that_comes_back_is_not_led_on(fleet: Fleet, pair: Pair, postgres_dsn: str) -> None:
    """It stands first in the DSN, and takes writes."""
    replicas = fleet.start_pair()
    pair.until_streaming()
    fail_over(fleet, pair, postgres_dsn)
    until(fleet.leader_pid, "one of them leads on the promoted server")
    pair.primary.start()
    for _ in range(3):
        end_sessions(fleet.conn, "dispatcher %")
        fleet.until_all(fleet.enqueue("quick", 3))
    with psycopg.connect(postgres_dsn, autocommit=True) as former:
        assert former.execute("select term from dispatcher.lease").fetchone() == (1,)
        until(lambda: count_sessions(former, "dispatcher %") == 0, "nobody works there")
    # Even where there is nobody else.
    pair.standby.stop("immediate")
    for replica in replicas:
        until(partial(replica.said, "it is a former primary"), "it says what it sees")
    with psycopg.connect(postgres_dsn) as former:
        assert former.execute("select term from dispatcher.lease").fetchone() == (1,)
    assert all(replica.alive for replica in replicas)


def test_a_replica_that_starts_finds_the_promoted_server_behind_a_former_primary(
    fleet: Fleet, pair: Pair, postgres_dsn: str
) -> None:
    pair.until_streaming()
    pair.promote()
    fleet.reconnect(pair.standby_dsn(postgres_dsn))
    fleet.start_leader()
    fleet.until_all(fleet.enqueue("quick"))


def test_a_replica_cut_off_with_the_former_primary_goes_over_to_the_promoted_one_once_it_can(
    fleet: Fleet, pair: Pair, postgres_dsn: str
) -> None:
    """It alone still reaches the old primary, which nobody has stopped, and not the new one."""
    with TcpProxy("127.0.0.1", port_of(pair.standby)) as way:
        way.cut()
        far = fleet.start_leader(dsn=pair.dsn(postgres_dsn, ports=(port_of(pair.primary), way.port)))
        near = fleet.start()
        [id] = fleet.enqueue("hold", until=str(fleet.gate()))
        fleet.until_started([id], pid=far.pid)
        pair.until_streaming()
        pair.promote()
        fleet.reconnect(pair.standby_dsn(postgres_dsn))
        with psycopg.connect(postgres_dsn, autocommit=True) as former:
            former.execute("select pg_terminate_backend(backend_pid) from dispatcher.replica where id = %s", [near.id])
            fleet.until_leads(near)
            way.restore()
            end_sessions(former, f"dispatcher lease {far.id}")
            until(lambda: count_sessions(former, "dispatcher %") == 0, "none of its sessions is left there")
        until(lambda: far.said("goes over to a promoted server"), "it says so")
        fleet.gate().touch()
        fleet.until_all([id, *fleet.enqueue("quick", 3)])
        assert not overlaps(fleet.events())


def test_with_a_synchronous_standby_a_former_primary_that_goes_on_vouches_for_nobody(
    fleet: Fleet, pair: Pair, postgres_dsn: str
) -> None:
    """It still answers questions; but what it commits reaches the promoted server no more, and it knows."""
    with TcpProxy("127.0.0.1", port_of(pair.standby)) as way:
        way.cut()
        far = fleet.start_leader(dsn=pair.dsn(postgres_dsn, ports=(port_of(pair.primary), way.port)))
        near = fleet.start()
        [id] = fleet.enqueue("stubborn", until=str(fleet.gate()))
        fleet.until_started([id], pid=far.pid)
        pair.be_synchronous()
        pair.promote()
        with psycopg.connect(postgres_dsn, autocommit=True) as former:
            former.execute("select pg_terminate_backend(backend_pid) from dispatcher.replica where id = %s", [near.id])
        fleet.reconnect(pair.standby_dsn(postgres_dsn))
        assert far.wait() == -signal.SIGKILL
        died = time.monotonic()
        fleet.until_started([id], pid=near.pid)
        fleet.gate().touch()
        fleet.until_all([id])
        assert not overlaps(fleet.events(), {far.pid: died - 0.05})


def test_servers_that_do_not_answer_keep_no_replica_from_the_lease(postgres_dsn: str, tmp_path: Path) -> None:
    """It looks for rivals of the server that it has reached, for longer than a lease session may be idle."""
    with TcpProxy("127.0.0.1", 1) as silent:
        silent.pause()
        port = conninfo.conninfo_to_dict(postgres_dsn)["port"]
        ports = f"{port},{silent.port},{silent.port},{silent.port}"
        dsn = conninfo.make_conninfo(postgres_dsn, host=",".join(4 * ["127.0.0.1"]), port=ports)
        with Fleet(dsn, tmp_path, admin_dsn=postgres_dsn) as fleet:

            def took_s() -> float:
                """From when it has registered until it leads."""
                leader = fleet.start_leader()
                until(lambda: leader.said("leads"), "its log has it")  # written just after the database has it
                leader.close()
                told = {entry["event"]: datetime.fromisoformat(entry["ts"]) for entry in leader.log()}
                return (told["leads"] - told["started"]).total_seconds()

            least_s = quickest(took_s, within_s=4.0, tries=3)
            print(f"\nled {least_s:.1f} s after it had registered")
            assert least_s < 4, "three that are silent cost no more than one, which is two seconds"
