"""An administrator cancels what the replicas ask (pg_cancel_backend), at random moments: nothing is lost."""

import random
import time
from collections import Counter
from functools import partial

import psycopg
import pytest

from tests.system.exhausted import Watch
from tests.system.replicas import CALM, PATIENCE_S, Fleet, Replica, overlaps, until

pytestmark = pytest.mark.system
# Chosen first: the planner puts conditions into an order of its own, and what is canceled is to be told.
CANCEL = """
with chosen as materialized (
    select pid, split_part(application_name, ' ', 2) as name
    from pg_stat_activity
    where application_name like 'dispatcher %' and datname = current_database() and state = 'active'
          and random() < 0.5)
select name from chosen where pg_cancel_backend(pid)"""

ENOUGH = 50  # so many wait, whatever the machine can do

REFUSE = """
create function public.refuse() returns trigger language plpgsql as $$
begin raise exception using errcode = '{kind}', message = 'refused'; end $$;
create trigger refuse before insert on dispatcher.claim for each statement execute function public.refuse()"""


def test_statements_that_an_administrator_cancels_lose_no_job_and_leave_no_lock(fleet: Fleet) -> None:
    leader, standby = fleet.start_pair(orphan_after="20s")
    chance, canceled, ids = random.Random(1), Counter[str](), list[int]()
    end = time.monotonic() + 8.0
    while time.monotonic() < end or (not canceled["completer"] and time.monotonic() < end + PATIENCE_S):
        if fleet.value("select count(*) from dispatcher.job where state = 'pending'") < ENOUGH:
            ids += fleet.enqueue("quick", 5, seconds=0.01)
        for _ in range(chance.randrange(20)):  # random moments are the point
            canceled.update(name for (name,) in fleet.query(CANCEL))
    print(f"\ncanceled {dict(canceled)} while {len(ids)} jobs were enqueued")
    assert canceled["lease"] > 10
    assert canceled["completer"]
    fleet.until_all(ids, timeout_s=60.0)
    assert not overlaps(fleet.events())
    assert leader.alive
    assert standby.alive
    for one, other in ((leader, standby), (standby, leader)):  # a lock that was stacked would stay where it is
        until(partial(hand_over, fleet, one, other), f"replica {other.id} leads")


def hand_over(fleet: Fleet, one: Replica, other: Replica) -> bool:
    """Asks a replica, should it lead, to give the lease away; whether the other one leads."""
    fleet.query("select pg_notify('dispatcher_replica_' || %s, 'resign ' || %s)::text", one.id, fleet.term())
    return fleet.leader_pid() == other.pid


@pytest.mark.parametrize("kind", ["query_canceled", "disk_full"])
def test_a_claim_that_is_refused_ever_again_makes_neither_haste_nor_noise_and_moves_no_lease(
    fleet: Fleet, kind: str
) -> None:
    """Another leader would be refused, too."""
    leader, standby = fleet.start_pair(**CALM)
    fleet.until_all(fleet.enqueue("quick"))
    term = fleet.term()
    fleet.conn.execute(REFUSE.format(kind=kind).encode())
    ids = fleet.enqueue("quick", 5)
    until(lambda: leader.metric("dispatcher_db_errors_total"), "a claim is refused")
    Watch(fleet, leader, standby).expect_calm()
    fleet.conn.execute("drop trigger refuse on dispatcher.claim")
    fleet.until_all(ids)
    assert (fleet.leader_pid(), fleet.term()) == (leader.pid, term)


@pytest.mark.parametrize("setting", ["statement_timeout = '30ms'", "default_transaction_read_only = on"])
def test_defaults_that_are_set_under_way_do_not_reach_the_replicas(fleet: Fleet, setting: str) -> None:
    leader = fleet.start_leader(**CALM)
    name = fleet.conn.info.dbname
    fleet.conn.execute(f"alter database {name} set {setting}".encode())
    fleet.conn.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'dispatcher %'"
    )
    ids = fleet.enqueue("quick", 50)
    fleet.until_all(ids)
    assert leader.alive
    with psycopg.connect(fleet.dsn, autocommit=True) as fresh:
        fresh.execute("select 1")
