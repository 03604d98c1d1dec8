"""A replica as a role that does not own the schema does all that a replica does; and what explain says of real ones."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo

from dispatcher.client import Client
from tests.system.replicas import Fleet, until

pytestmark = pytest.mark.system


@pytest.fixture
def runner(dsn: str, superuser_dsn: str) -> Iterator[str]:
    """The DSN of a role with the level run."""
    name = f"runner_{secrets.token_hex(6)}"
    with psycopg.connect(superuser_dsn, autocommit=True) as admin:
        admin.execute(f"create role {name} login")
        with psycopg.connect(dsn, autocommit=True) as owner:
            owner.execute("select dispatcher.grant_access(%s, 'run')", [name])
        yield conninfo.make_conninfo(dsn, user=name)
        admin.execute(f"drop owned by {name}")
        admin.execute(f"drop role {name}")


@pytest.fixture
def fleet(dsn: str, runner: str, tmp_path: Path) -> Iterator[Fleet]:
    """Replicas as the role that runs; the test itself is the owner."""
    with Fleet(runner, tmp_path, admin_dsn=dsn) as fleet:
        yield fleet


def test_role_that_only_runs_leads_runs_rescues_and_prunes(fleet: Fleet) -> None:
    fleet.conn.execute(
        "insert into dispatcher.job (type, state, payload, created_at, finished_at)"
        " values ('quick', 'succeeded', '{}', now() - interval '9 days', now() - interval '9 days')"
    )
    leader, standby = fleet.start_pair()
    users = fleet.query("select distinct usename from pg_stat_activity where application_name like 'dispatcher %'")
    assert users == [(conninfo.conninfo_to_dict(fleet.dsn)["user"],)]
    until(lambda: fleet.value("select count(*) from dispatcher.job") == 0, "the old job is pruned")
    later = fleet.value("""select dispatcher.enqueue('quick', '{}', '{"delay": "300ms"}')""")
    fleet.until_all([*fleet.enqueue("quick", 20), later])
    fleet.until_all(fleet.enqueue("late", 1), "failed")
    [asked, crashed] = fleet.enqueue("hold", 2, until=str(fleet.gate()))
    fleet.until_started([asked, crashed], pid=leader.pid)
    until(lambda: fleet.value("select seen_at is not null from dispatcher.lease"), "the leader notes that it leads")
    assert fleet.value("select dispatcher.cancel(%s)", asked) == "running"
    fleet.until_all([asked], "canceled")
    leader.send(signal.SIGKILL)
    fleet.until_started([crashed], pid=standby.pid)
    fleet.gate().touch()
    fleet.until_all([crashed])
    assert standby.metric("dispatcher_jobs_rescued_total") == 1
    until(lambda: fleet.value("select count(*) from dispatcher.replica") == 1, "the dead replica's row is removed")
    standby.send(signal.SIGTERM)
    assert standby.wait() == 0
    assert fleet.value("select count(*) from dispatcher.replica") == 0
    assert not leader.said("permission denied")
    assert not standby.said("permission denied")


def test_explain_follows_a_job_from_no_replica_to_its_end(fleet: Fleet, dsn: str) -> None:
    with Client(dsn) as client:

        def first(id: int) -> str:
            return client.explain(id).reasons[0].kind

        leader = fleet.start_leader(limits="hold=1")
        one, other = fleet.enqueue("hold", 2, until=str(fleet.gate()))
        fleet.until_started([one])
        assert first(one) == "running"
        reason = client.explain(other).reasons[0]
        assert (reason.kind, reason.details["limit"], reason.details["by"]) == ("limit", 1, [one])
        leader.send(signal.SIGKILL)
        leader.wait()
        until(lambda: first(other) == "no_replica", "the server has noticed its death")
        gone, no_leader = client.explain(other).reasons[:2]
        assert [each["replica"] for each in gone.details["gone"]] == [leader.id]
        assert no_leader.kind == "no_leader"
        assert no_leader.details["since"] is not None
        assert not client.explain(one).reasons[0].details["alive"]
        fleet.start_leader()
        fleet.gate().touch()
        fleet.until_all([one, other])
        assert first(other) == "ended"
