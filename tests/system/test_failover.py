"""Whatever dies, another replica goes on: no job is lost, and none runs twice at once."""

import signal
import time
from functools import partial
from pathlib import Path
from statistics import median

import pytest

from dispatcher.embedded import EmbeddedPostgres
from tests.system.replicas import CALM, Fleet, Replica, count_sessions, end_sessions, overlaps, until

pytestmark = pytest.mark.system


@pytest.fixture
def leader(fleet: Fleet) -> Replica:
    return fleet.start_leader(**CALM)


def ask_to_resign(fleet: Fleet, replica: Replica) -> None:
    """As `dispatcher leader resign` does."""
    fleet.conn.execute("select pg_notify('dispatcher_replica_' || %s, 'resign ' || %s)", [replica.id, fleet.term()])


def open_gate(fleet: Fleet) -> None:
    fleet.gate().touch()


# kill -9


def test_after_kill_9_of_the_leader_the_standby_claims(fleet: Fleet) -> None:
    leader, standby = fleet.start_pair()
    fleet.until_all(fleet.enqueue("quick"))
    killed = time.monotonic()
    leader.send(signal.SIGKILL)
    ids = fleet.enqueue("quick", 5)
    fleet.until_all(ids)
    first = min(event.t for event in fleet.events("start") if event.job in ids)
    print(f"\nfirst claim {1000 * (first - killed):.0f} ms after kill -9")
    assert {event.pid for event in fleet.events("start") if event.job in ids} == {standby.pid}
    assert fleet.term() == 2


def test_the_jobs_of_a_killed_leader_are_run_again_by_the_standby_and_nothing_is_lost(fleet: Fleet) -> None:
    """Its death is proven on the same host: nobody waits for orphan_after."""
    leader, standby = fleet.start_pair()
    ids = fleet.enqueue("hold", 3, until=str(fleet.gate()))
    fleet.until_started(ids, pid=leader.pid)
    quick = fleet.enqueue("quick", 200)
    leader.send(signal.SIGKILL)
    leader.wait()
    died = time.monotonic()
    fleet.until_started(ids, pid=standby.pid)
    print(f"\norphans run again {1000 * (time.monotonic() - died):.0f} ms after kill -9")
    open_gate(fleet)
    fleet.until_all(ids + quick)
    assert not overlaps(fleet.events(), {leader.pid: died})
    for id in ids:
        job = fleet.job(id)
        assert (job["attempt"], job["failures"]) == (2, 1)
        assert [error["kind"] for error in job["errors"]] == ["crash"]
    assert standby.metric("dispatcher_jobs_rescued_total") >= 3


def test_a_killed_standby_that_still_runs_jobs_loses_them_to_the_leader(fleet: Fleet) -> None:
    leader, standby = fleet.start_pair()
    [id] = fleet.enqueue("hold", until=str(fleet.gate()))
    fleet.until_started([id], pid=leader.pid)
    ask_to_resign(fleet, leader)
    fleet.until_leads(standby)
    leader.send(signal.SIGKILL)
    fleet.until_started([id], pid=standby.pid)
    open_gate(fleet)
    fleet.until_all([id])


# SIGSTOP past the lease


def test_a_leader_stopped_past_the_lease_stands_by_once_it_wakes_and_no_job_runs_twice_at_once(fleet: Fleet) -> None:
    leader, standby = fleet.start_pair()
    held = fleet.enqueue("hold", 2, until=str(fleet.gate()))
    fleet.until_started(held, pid=leader.pid)
    leader.send(signal.SIGSTOP)
    stopped = time.monotonic()
    more = fleet.enqueue("quick", 50)
    fleet.until_leads(standby)
    print(f"\nstandby leads {1000 * (time.monotonic() - stopped):.0f} ms after SIGSTOP")
    fleet.until_all(more)
    assert set(fleet.states(held).values()) == {"running"}, "it may wake, and is not fenced yet"
    leader.send(signal.SIGCONT)
    until(lambda: leader.said("the lease session is lost"), "the old leader has found its session ended")
    assert fleet.leader_pid() == standby.pid
    open_gate(fleet)
    fleet.until_all(held)
    assert leader.alive
    assert not overlaps(fleet.events())
    assert {fleet.job(id)["attempt"] for id in held} == {1}, "its outcomes still count: it never lost its jobs"
    assert leader.metric("dispatcher_leader") == 0
    assert standby.metric("dispatcher_leader") == 1
    assert leader.metric("dispatcher_stale_outcomes_total") == 0


def test_a_late_outcome_changes_nothing_and_is_counted(fleet: Fleet, leader: Replica) -> None:
    """The job was taken away while it ran, as a rescue would."""
    [id] = fleet.enqueue("hold", until=str(fleet.gate()))
    fleet.until_started([id])
    fleet.query(
        "update dispatcher.job set state = 'scheduled', owner = null, run_at = now() + interval '1 hour' where id = %s"
        " returning id",
        id,
    )
    open_gate(fleet)
    until(lambda: leader.metric("dispatcher_stale_outcomes_total") == 1, "the late outcome has been counted")
    job = fleet.job(id)
    assert (job["state"], job["result"], job["attempt"]) == ("scheduled", None, 1)


# What the jobs of others must not cost


def test_slow_jobs_after_quick_ones_start_side_by_side(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three jobs come due in the middle of many quick ones, and there are threads for all of them: none waits behind
    another until it is given back, which would be never here."""
    monkeypatch.setenv("TEST_POOL_STALL_S", "1000")  # hang_jobs heeds it
    fleet.start_leader(**CALM, executors="tests.system.fault_jobs,tests.system.hang_jobs")
    spread = []
    for turn in range(8):
        gate = fleet.gate(f"gate-{turn}")
        rows = fleet.query(
            "select dispatcher.enqueue('hold', jsonb_build_object('until', %s::text), '{\"delay\": 0.05}')"
            " from generate_series(1, 3)",
            str(gate),
        )
        ids = [id for (id,) in rows]
        quick = fleet.enqueue("quick", 300)
        fleet.until_started(ids)
        starts = [event.t for event in fleet.events("start") if event.job in ids]
        spread.append(max(starts) - min(starts))
        gate.touch()
        fleet.until_all(quick + ids)
    print("\nfrom the first to the last of three slow jobs:", *(f"{1000 * each:.0f} ms" for each in spread))
    assert median(spread) < 0.2


# Sessions ended


def test_ended_sessions_of_every_kind_cost_no_job(fleet: Fleet, leader: Replica) -> None:
    """One kind after another; the pruner and the gauges connect again only when they next look, now and then."""
    held = fleet.enqueue("hold", 2, until=str(fleet.gate()))
    fleet.until_started(held)
    ids = []
    kinds = ["lease %", "completer", "listener", "stager", "rescuer"]
    for kind in [*kinds, "pruner", "gauges", *kinds, "%", "%"]:
        ids += fleet.enqueue("quick", 10, seconds=0.01)
        until(partial(end_sessions, fleet.conn, f"dispatcher {kind}"), f"there is a session {kind}", 5)
    open_gate(fleet)
    fleet.until_all(held + ids)
    assert leader.alive
    assert not overlaps(fleet.events())
    assert len({event.job for event in fleet.events("end")}) == len(held + ids)
    assert not fleet.query("select id from dispatcher.job where failures > 0")
    assert {fleet.job(id)["attempt"] for id in held} == {1}


def test_ended_sessions_while_another_replica_stands_by_leave_one_leader(fleet: Fleet) -> None:
    leader, standby = fleet.start_pair()
    ids = []
    for _ in range(5):
        ids += fleet.enqueue("quick", 20)
        until(lambda: count_sessions(fleet.conn, "dispatcher lease %") == 2, "both lease sessions stand")
        end_sessions(fleet.conn, "dispatcher lease %")
    fleet.until_all(ids)
    assert not overlaps(fleet.events())
    until(lambda: fleet.leader_pid() in (leader.pid, standby.pid), "one of them leads")
    until(lambda: leader.metric("dispatcher_leader") + standby.metric("dispatcher_leader") == 1, "one of them knows it")


# PostgreSQL itself


@pytest.mark.parametrize("how", ["kill -9", "fast"])
def test_replicas_come_back_by_themselves_after_postgresql(
    postgres: EmbeddedPostgres, postgres_dsn: str, tmp_path: Path, how: str
) -> None:
    with Fleet(postgres_dsn, tmp_path) as fleet:
        fleet.start_pair(orphan_after="20s")
        held = fleet.enqueue("hold", 2, until=str(fleet.gate()))
        ids = fleet.enqueue("quick", 40, seconds=0.05)
        fleet.until_started([*held, ids[0]])
        if how == "kill -9":
            postgres.kill()
        else:
            postgres.stop()
        open_gate(fleet)  # they end while there is nobody to tell
        until(lambda: len([e for e in fleet.events("end") if e.job in held]) == 2, "the held jobs have ended")
        postgres.start()
        fleet.reconnect()
        ids += fleet.enqueue("quick", 10)
        fleet.until_all(held + ids)
        assert all(replica.alive for replica in fleet.replicas)
        assert not overlaps(fleet.events())
        assert {fleet.job(id)["attempt"] for id in held} == {1}, "their outcomes were kept, and recorded once"
        assert not fleet.query("select id from dispatcher.job where failures > 0")


# A graceful stop


def test_sigterm_gives_the_lease_away_first_and_lets_running_jobs_finish(fleet: Fleet) -> None:
    leader, standby = fleet.start_pair()
    held = fleet.enqueue("hold", 2, until=str(fleet.gate()))
    fleet.until_started(held, pid=leader.pid)
    leader.send(signal.SIGTERM)
    told = time.monotonic()
    fleet.until_leads(standby)
    print(f"\nstandby leads {1000 * (time.monotonic() - told):.0f} ms after SIGTERM")
    assert leader.alive, "its jobs still run"
    ids = fleet.enqueue("quick", 10)
    fleet.until_all(ids)
    assert {event.pid for event in fleet.events("start") if event.job in ids} == {standby.pid}
    assert set(fleet.states(held).values()) == {"running"}
    open_gate(fleet)
    assert leader.wait() == 0
    fleet.until_all(held)
    assert {(fleet.job(id)["attempt"], fleet.job(id)["failures"]) for id in held} == {(1, 0)}
    assert fleet.query("select id from dispatcher.replica") == [(standby.id,)], "it left nothing behind"


def test_sigterm_returns_unstarted_jobs_without_using_up_a_try(fleet: Fleet) -> None:
    """Claimed ahead for a quick pool, behind jobs that suddenly are slow: they wait in the process."""
    leader = fleet.start_leader(threads="1", shutdown_grace="2s")
    fleet.until_all(fleet.enqueue("quick", 400))
    standby_settings = {"threads": "4"}
    ids = fleet.enqueue("hold", 50, until=str(fleet.gate()))
    fleet.until_started([ids[0]], pid=leader.pid)
    standby = fleet.start(**standby_settings)
    leader.send(signal.SIGTERM)
    fleet.until_leads(standby)
    open_gate(fleet)
    assert leader.wait() == 0
    fleet.until_all(ids)
    assert not overlaps(fleet.events())
    assert not fleet.query("select id from dispatcher.job where failures > 0")
    assert fleet.events("end", pid=standby.pid)


def test_jobs_that_heed_the_shutdown_go_back_without_using_up_a_try(fleet: Fleet) -> None:
    leader, standby = fleet.start_pair()
    ids = fleet.enqueue("hold", 2, until=str(fleet.gate()))
    fleet.until_started(ids, pid=leader.pid)
    leader.send(signal.SIGTERM)
    fleet.until_started(ids, pid=standby.pid)
    assert leader.wait() == 0
    assert {event.why for event in fleet.events("end", pid=leader.pid)} == {"shutdown"}
    open_gate(fleet)
    fleet.until_all(ids)
    assert not overlaps(fleet.events())
    assert {(fleet.job(id)["failures"], len(fleet.job(id)["errors"])) for id in ids} == {(0, 0)}


def test_a_job_that_ignores_the_shutdown_is_given_back_only_for_after_the_process_is_gone(fleet: Fleet) -> None:
    leader = fleet.start_leader(shutdown_grace="500ms")
    standby = fleet.start()
    [id] = fleet.enqueue("stubborn", until=str(fleet.gate()))
    fleet.until_started([id], pid=leader.pid)
    leader.send(signal.SIGTERM)
    assert leader.wait() == 0
    gone = time.monotonic()
    job = fleet.job(id)
    assert (job["state"], job["failures"]) == ("scheduled", 0)
    assert job["run_at"] > fleet.value("select now()")
    open_gate(fleet)
    fleet.until_all([id])
    assert fleet.events("start", job=id)[1].pid == standby.pid
    assert not overlaps(fleet.events(), {leader.pid: gone})


def test_a_second_sigterm_hurries(fleet: Fleet) -> None:
    leader = fleet.start_leader(shutdown_grace="25s", orphan_after="30s")
    [id] = fleet.enqueue("stubborn", until=str(fleet.gate()))
    fleet.until_started([id])
    leader.send(signal.SIGTERM)
    until(lambda: leader.said("told to stop"), "it has been told once")
    began = time.monotonic()
    leader.send(signal.SIGTERM)
    until(lambda: fleet.events("asked"), "the job has been asked to stop")
    assert leader.wait() == 0
    assert time.monotonic() - began < 20  # before the grace is over
    assert fleet.job(id)["state"] == "scheduled"


def test_asked_to_resign_the_leader_hands_over_and_its_jobs_go_on(fleet: Fleet) -> None:
    leader, standby = fleet.start_pair()
    held = fleet.enqueue("hold", 2, until=str(fleet.gate()))
    fleet.until_started(held, pid=leader.pid)
    ask_to_resign(fleet, leader)
    fleet.until_leads(standby)
    ids = fleet.enqueue("quick", 10)
    fleet.until_all(ids)
    assert {event.pid for event in fleet.events("start") if event.job in ids} == {standby.pid}
    open_gate(fleet)
    fleet.until_all(held)
    assert {fleet.job(id)["attempt"] for id in held} == {1}
    assert leader.alive


def test_asked_to_resign_with_nobody_to_take_over_the_leader_leads_again(fleet: Fleet, leader: Replica) -> None:
    ask_to_resign(fleet, leader)
    until(lambda: fleet.term() == 2, "it leads again")
    fleet.until_all(fleet.enqueue("quick", 5))


def test_a_word_to_resign_that_came_late_does_not_end_a_later_term(fleet: Fleet) -> None:
    leader, standby = fleet.start_pair()
    ask_to_resign(fleet, standby)
    fleet.conn.execute("select pg_notify('dispatcher_replica_' || %s, 'resign')", [standby.id])
    fleet.conn.execute("select pg_notify('dispatcher_replica_' || %s, 'unheard of')", [standby.id])
    until(lambda: standby.said("a notification nobody understands"), "the standby has heard all of them")
    leader.send(signal.SIGKILL)
    fleet.until_leads(standby)
    fleet.until_all(fleet.enqueue("quick", 5))
    assert fleet.term() == 2
    assert not standby.said("gives the lease away")


# A promoted server


def test_on_another_timeline_the_leader_waits_before_its_first_claim(fleet: Fleet) -> None:
    fleet.query("update dispatcher.lease set timeline = '000000FF' returning 1")
    leader = fleet.launch(orphan_after="1500ms", shutdown_grace="1s")
    fleet.until_leads(leader)
    led = fleet.value("select extract(epoch from taken_at)::float8 from dispatcher.lease")
    until(lambda: fleet.query("select 1 from dispatcher.type where name = 'quick'"), "the types are known")
    [id] = fleet.enqueue("quick")
    fleet.until_all([id])
    started = fleet.value("select extract(epoch from started_at)::float8 from dispatcher.job where id = %s", id)
    assert started - led >= 1.4
    assert fleet.value("select timeline from dispatcher.lease") != "000000FF"
