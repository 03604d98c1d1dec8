"""A claim that the server commits although its leader is gone by then: the jobs are its own, and run all the same."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg import conninfo

from dispatcher.embedded import EmbeddedPostgres
from tests.proxy import TcpProxy
from tests.system.replicas import Fleet, overlaps, until

pytestmark = pytest.mark.system

# The first claim of a job takes a while inside the server: long enough for its client to go away meanwhile.
SLOW_CLAIM = """
create sequence public.claims;
create function public.slow() returns trigger language plpgsql security definer set search_path = pg_catalog as $$
begin
    if new.state = 'running' and old.state = 'pending' and nextval('public.claims') = 1 then
        perform pg_sleep(1);
    end if;
    return new;
end $$;
create trigger slow before update on dispatcher.job for each row execute function public.slow();
"""
ASLEEP = """
select pid from pg_stat_activity where application_name like 'dispatcher lease %' and wait_event = 'PgSleep'
"""
# Long enough for the claim to be neither ended nor taken for silent; the server looks for its client half as often.
CALM = {"heartbeat_interval": "500ms", "lease_duration": "10s", "orphan_after": "60s", "shutdown_grace": "1s"}


@pytest.fixture
def fleet(postgres: EmbeddedPostgres, postgres_dsn: str, tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(postgres_dsn, tmp_path) as fleet:
        yield fleet


def claim_slowly(fleet: Fleet) -> int:
    """A job that is being claimed by now; the claim commits in a second."""
    fleet.conn.execute(SLOW_CLAIM.encode())
    [id] = fleet.enqueue("quick")
    until(lambda: fleet.query(ASLEEP), "the claim is under way")
    return id


def test_claim_whose_answer_never_arrives_is_given_back_by_its_leader_and_run(
    fleet: Fleet, proxy: TcpProxy, postgres_dsn: str
) -> None:
    """Nobody else would: to the others its owner is alive and runs it."""
    leader = fleet.start_leader(dsn=conninfo.make_conninfo(postgres_dsn, port=proxy.port), **CALM)
    id = claim_slowly(fleet)
    proxy.pause(to_server=False)
    until(lambda: fleet.states([id])[id] == "running", "the claim is committed")
    proxy.drop()
    proxy.restore()
    fleet.until_all([id])
    assert leader.alive
    [start] = fleet.events("start", job=id)
    assert start.attempt == 2
    assert fleet.job(id)["failures"] == 0


def test_claim_under_way_when_the_connection_breaks_is_ended_before_the_next_one(
    fleet: Fleet, proxy: TcpProxy, postgres_dsn: str
) -> None:
    """It would commit after its owner has looked what the database believes it to run, and nobody would run the job."""
    leader = fleet.start_leader(dsn=conninfo.make_conninfo(postgres_dsn, port=proxy.port), **CALM)
    id = claim_slowly(fleet)
    proxy.drop()
    fleet.until_all([id])
    assert leader.alive
    assert len(fleet.events("start", job=id)) == 1
    assert fleet.job(id)["failures"] == 0


def test_claim_that_commits_after_its_leader_was_killed_is_rescued(
    fleet: Fleet, proxy: TcpProxy, postgres_dsn: str
) -> None:
    """The lock of the lease is free only once that claim has ended: the next leader cannot miss it."""
    leader = fleet.start_leader(dsn=conninfo.make_conninfo(postgres_dsn, port=proxy.port), **CALM)
    standby = fleet.start(**CALM)
    id = claim_slowly(fleet)
    leader.close()
    fleet.until_leads(standby)
    fleet.until_all([id])
    assert not overlaps(fleet.events())
    [start] = fleet.events("start", job=id)
    assert (start.pid, start.attempt) == (standby.pid, 2), "the first was claimed by the one that is gone"
