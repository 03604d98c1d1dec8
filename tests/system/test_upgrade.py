"""The previous version and this one side by side on this one's schema: nothing lost or twice, no limit broken."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from dispatcher import migrate
from tests.system import previous
from tests.system.previous import command, script
from tests.system.replicas import Fleet, Replica, overlaps, until

pytestmark = pytest.mark.system

JOBS = "tests.system.upgrade_jobs"
NARROW = 2  # the limit of the type `narrow`
NOISE = ("ERROR", "WARNING", "CRITICAL", "raw")


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The code of the previous version."""
    return str(previous.unpack(tmp_path_factory.mktemp("previous")))


@pytest.fixture
def fleet(empty_dsn: str, tmp_path: Path, old: str) -> Iterator[Fleet]:
    """On the previous version's schema."""
    command(old, empty_dsn, "migrate")
    with Fleet(empty_dsn, tmp_path) as fleet:
        yield fleet


@pytest.fixture
def migrated(fleet: Fleet) -> Fleet:
    """On this version's schema, which was the previous one's before."""
    migrate.migrate(fleet.dsn)
    return fleet


def launch(fleet: Fleet, code: str | None = None, **settings: str) -> Replica:
    """A replica that is up; of this version, or of the previous one."""
    return fleet.start(code=code, executors=JOBS, **settings)


def complaints(replica: Replica) -> list[str]:
    """What a replica has logged that somebody would have to look into."""
    return [entry["event"] for entry in replica.log() if entry["level"].upper() in NOISE or entry["level"] == "raw"]


def most_at_once(fleet: Fleet, ids: list[int]) -> int:
    """How many of these jobs ran at the same time, at most."""
    steps = [
        (event.t, 1 if event.what == "start" else -1)
        for event in fleet.events()
        if event.job in ids and event.what in ("start", "end")
    ]
    running = highest = 0
    for _, step in sorted(steps):
        running += step
        highest = max(highest, running)
    return highest


def one_of_each(fleet: Fleet) -> dict[str, int]:
    """A job in each state that the previous version knows."""
    gate, later = str(fleet.gate()), str(fleet.gate("later"))
    jobs = {
        "running": fleet.enqueue("hold", until=gate)[0],
        "retrying": fleet.enqueue("flaky", until=later)[0],
        "failed": fleet.enqueue("doomed")[0],
        "succeeded": fleet.enqueue("quick")[0],
        "scheduled": fleet.value("select dispatcher.enqueue('quick', '{}', '{\"delay\": \"3s\"}')"),
        "canceled": fleet.value("select dispatcher.enqueue('quick', '{}', '{\"delay\": \"1h\"}')"),
    }
    fleet.value("select dispatcher.cancel(%s)", jobs["canceled"])
    fleet.until_started([jobs["running"]])
    fleet.until_all([jobs["failed"]], "failed")
    fleet.until_all([jobs["succeeded"]])
    until(
        lambda: fleet.value("select attempt from dispatcher.job where id = %s", jobs["retrying"]) >= 2, "it is retried"
    )
    return jobs


def test_a_fleet_of_the_previous_version_goes_on_while_and_after_the_schema_is_migrated(fleet: Fleet, old: str) -> None:
    pair = [launch(fleet, old), launch(fleet, old)]
    jobs = one_of_each(fleet)
    before = fleet.enqueue("narrow", 20)
    applied = migrate.migrate(fleet.dsn)
    assert len(applied) == migrate.LATEST - migrate.PREVIOUS
    after = fleet.enqueue("narrow", 20)
    fleet.gate().touch()
    fleet.gate("later").touch()
    fleet.until_all([jobs["running"], jobs["retrying"], jobs["scheduled"], *before, *after])
    assert fleet.states(jobs.values())[jobs["failed"]] == "failed"
    assert fleet.states(jobs.values())[jobs["canceled"]] == "canceled"
    assert fleet.value("select attempt from dispatcher.job where id = %s", jobs["running"]) == 1
    assert overlaps(fleet.events()) == []
    assert most_at_once(fleet, before + after) == NARROW
    for replica in pair:
        replica.send(signal.SIGTERM)
        assert replica.wait() == 0
        # The tables were locked for a moment, which its services wait for only so long, and open their sessions anew.
        assert [text for text in complaints(replica) if "lock timeout" not in text] == []


def test_an_older_replica_starts_on_the_newer_schema(migrated: Fleet, old: str) -> None:
    """It crashed, or its host did, before it was upgraded; or the upgrade is taken back."""
    replica = launch(migrated, old)
    migrated.until_leads(replica)
    migrated.until_all(migrated.enqueue("quick", 5))
    assert complaints(replica) == []
    assert "up to date" in command(old, migrated.dsn, "migrate")
    assert "up to date" in command(old, migrated.dsn, "migrate", "--check")


def test_a_newer_replica_refuses_the_older_schema_in_one_line(fleet: Fleet) -> None:
    replica = fleet.launch(executors=JOBS)
    assert replica.wait() != 0
    (line,) = [entry["event"] for entry in replica.log() if entry["level"] != "INFO"]
    assert re.search(r"the database lacks 0002_.*: run `dispatcher migrate` first", line)
    assert len(line.splitlines()) == 1


def test_the_newer_leads_and_the_older_takes_over_only_where_no_newer_is_left(migrated: Fleet, old: str) -> None:
    older = launch(migrated, old)
    migrated.until_leads(older)
    newer, other = launch(migrated), launch(migrated)
    until(lambda: migrated.leader_pid() in (newer.pid, other.pid), "a newer one leads")
    first, second = (newer, other) if migrated.leader_pid() == newer.pid else (other, newer)
    first.send(signal.SIGKILL)
    migrated.until_leads(second)
    terms = migrated.term()
    ids = migrated.enqueue("narrow", 10)
    migrated.until_all(ids)
    assert {event.pid for event in migrated.events("start") if event.job in ids} == {second.pid}
    assert migrated.term() == terms
    second.send(signal.SIGKILL)
    migrated.until_leads(older)
    ids = migrated.enqueue("narrow", 10)
    migrated.until_all(ids)
    assert most_at_once(migrated, ids) == NARROW
    assert complaints(older) == []


def test_a_rolling_restart_to_the_new_version_and_back_loses_nothing(migrated: Fleet, old: str) -> None:
    running = [launch(migrated, old), launch(migrated, old)]
    ids = migrated.enqueue("narrow", 60, seconds=0.1) + migrated.enqueue("quick", 100, seconds=0.05)
    for code in (None, None, old, old):  # one for one, to this version and back again
        running.append(launch(migrated, code))
        leaver = running.pop(0)
        leaver.send(signal.SIGTERM)
        assert leaver.wait() == 0
        assert complaints(leaver) == []
        ids += migrated.enqueue("quick", 20)
    migrated.until_all(ids)
    assert overlaps(migrated.events()) == []
    assert most_at_once(migrated, ids[:60]) == NARROW
    assert migrated.value("select sum(failures) from dispatcher.job") == 0
    assert sorted(event.job for event in migrated.events("end")) == sorted(ids)  # each ran once, to its end
    for replica in running:
        replica.send(signal.SIGTERM)
        assert replica.wait() == 0
        assert complaints(replica) == []


def test_an_older_standby_leads_while_the_newer_leader_still_drains(migrated: Fleet, old: str) -> None:
    """On the way back: a job that takes its time in the leaver must not keep all others waiting."""
    newer = launch(migrated, shutdown_grace="15s", orphan_after="20s")
    migrated.until_leads(newer)
    older = launch(migrated, old)
    (held,) = migrated.enqueue("hold", until=str(migrated.gate()))
    migrated.until_started([held], pid=newer.pid)
    newer.send(signal.SIGTERM)
    ids = migrated.enqueue("quick", 5)
    migrated.until_all(ids)
    assert newer.alive
    assert {event.pid for event in migrated.events("start") if event.job in ids} == {older.pid}
    migrated.gate().touch()
    assert newer.wait() == 0
    migrated.until_all([held])
    assert overlaps(migrated.events()) == []


@pytest.mark.parametrize("dies", ["older", "newer"])
def test_jobs_of_a_replica_killed_beside_another_version_run_again(migrated: Fleet, old: str, dies: str) -> None:
    first = launch(migrated, old if dies == "older" else None)
    migrated.until_leads(first)
    ids = migrated.enqueue("hold", 3, until=str(migrated.gate()))
    migrated.until_started(ids, pid=first.pid)
    second = launch(migrated, None if dies == "older" else old)
    first.send(signal.SIGKILL)
    first.wait()
    migrated.until_leads(second)
    migrated.gate().touch()
    migrated.until_all(ids)
    assert {event.pid for event in migrated.events("end")} == {second.pid}
    assert complaints(second) == ["took jobs from a replica that is gone"]


def test_programs_of_the_previous_version_work_on_the_new_schema(migrated: Fleet, old: str) -> None:
    launch(migrated)
    until_known = lambda: migrated.query("select 1 from dispatcher.type where name = 'quick'")  # noqa: E731
    until(until_known, "the types are known")
    id = int(command(old, migrated.dsn, "enqueue", "quick", '{"seconds": 0.01}', "--priority", "3"))
    migrated.until_all([id])
    assert '"succeeded"' in command(old, migrated.dsn, "job", "show", str(id), "--json")
    assert str(id) in command(old, migrated.dsn, "job", "list")
    assert "quick" in command(old, migrated.dsn, "type", "list")
    assert command(old, migrated.dsn, "replica", "list")
    script(
        old,
        migrated.dsn,
        f"""
one = client.enqueue("quick", {{}}, delay=3600)
assert client.cancel(one) == "canceled"
assert client.retry(one) == "pending"
assert client.wait(one).state == "succeeded"
many = client.enqueue_many("narrow", [{{}}] * 5)
assert all(client.wait(each).state == "succeeded" for each in many)
again = client.enqueue("hold", {{"until": "{migrated.gate()}"}}, unique_key="k")
assert client.enqueue("hold", {{"until": "x"}}, unique_key="k") == again
failed = client.enqueue("doomed", {{}})
assert client.wait(failed).state == "failed"
assert client.retry(failed) == "pending"
assert client.cancel(again) in ("running", "canceled")
assert client.wait(again).state == "canceled"
""",
    )


def test_a_plan_made_before_the_migration_works_after_it(fleet: Fleet, old: str) -> None:
    """An application's session that has enqueued before goes on doing so."""
    launch(fleet, old)
    until(lambda: fleet.query("select 1 from dispatcher.type"), "the types are known")
    with psycopg.connect(fleet.dsn, autocommit=True, prepare_threshold=0) as own:
        statement = "select dispatcher.enqueue('quick', '{}', '{\"priority\": 1}')"
        ids = [own.execute(statement).fetchone()[0] for _ in range(10)]  # type: ignore[index]
        migrate.migrate(fleet.dsn)
        ids += [own.execute(statement).fetchone()[0] for _ in range(10)]  # type: ignore[index]
    fleet.until_all(ids)


def test_what_an_older_leader_does_not_know_is_done_once_a_newer_one_is_there(migrated: Fleet, old: str) -> None:
    """Batches, jobs after others and schedules wait; nothing of them is lost, nor run too soon."""
    older = launch(migrated, old)
    migrated.until_leads(older)
    enqueue = "select dispatcher.enqueue(%s, '{}', %s::jsonb)"
    (first,) = migrated.enqueue("quick")
    after = migrated.value(enqueue, "quick", f'{{"after": {first}}}')
    batch = migrated.value("select dispatcher.enqueue_batch('quick', array['{}', '{}']::jsonb[])")
    migrated.value("select dispatcher.add_schedule('each', '* * * * *', 'quick')::text")
    migrated.value("select pg_notify('dispatcher_fleet', 'watch')::text")
    migrated.until_all([first])
    children = [id for (id,) in migrated.query("select id from dispatcher.job where parent_id = %s", batch)]
    migrated.until_all(children)
    assert migrated.states([after, batch]) == {after: "blocked", batch: "running"}
    newer = launch(migrated)
    migrated.until_leads(newer)
    migrated.until_all([after, batch])
    until(lambda: migrated.value("select next_at is not null from dispatcher.schedule"), "the schedule is planned")
    for replica in (older, newer):
        assert complaints(replica) == []


def test_an_older_standby_never_leads_past_a_pause(migrated: Fleet, old: str) -> None:
    """The older one knows of no pauses: while a newer one lives it does not lead, whoever dies or resigns."""
    newer, older, other = launch(migrated), launch(migrated, old), launch(migrated)
    migrated.value("select dispatcher.pause('quick')")
    ids = migrated.enqueue("quick", 10)
    for _ in range(5):
        leader = newer if migrated.leader_pid() == newer.pid else other
        migrated.value(
            "select pg_notify('dispatcher_replica_' || %s, 'resign ' || %s)::text", leader.id, migrated.term()
        )
        term = migrated.term()
        until(lambda term=term: migrated.term() > term, "the next term has begun")  # type: ignore[misc]
        migrated.until_all(migrated.enqueue("narrow"))
    assert set(migrated.states(ids).values()) == {"pending"}
    assert older.id not in {holder for (holder,) in migrated.query("select owner from dispatcher.job")}
    migrated.value("select dispatcher.resume('quick')")
    migrated.until_all(ids)
    assert complaints(older) == []
