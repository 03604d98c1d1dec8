"""Each way to end, with the process killed at each step on the way: the job ends as promised all the same.

Delivery is at least once, so what a job does outside of ctx.complete may be there twice; with it, exactly once.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from dispatcher import Client
from tests.system.replicas import CALM, Fleet, Replica, count_sessions, until

pytestmark = pytest.mark.system

EXECUTORS = "tests.system.ending_jobs"

# How each way ends after the process died once on the way: state, attempts, failures. The crash is one of each.
WAYS = {
    "return": ("succeeded", 2, 1),
    "partial": ("partial", 2, 1),
    "fail": ("failed", 2, 2),
    "cancel": ("canceled", 2, 1),
    "retry": ("succeeded", 3, 2),
    "snooze": ("succeeded", 3, 1),
    "raise": ("succeeded", 3, 2),
    "complete": ("succeeded", 2, 1),
}
# What was committed before the crash counts: the second attempt finds the checkpoint, and these end in it.
AFTER_THEIR_COMMIT = {**WAYS, "retry": ("succeeded", 2, 1), "snooze": ("succeeded", 2, 1), "raise": ("succeeded", 2, 1)}
HOOKS = {  # what the hook is told in the first attempt
    "return": "success",
    "partial": "success",
    "fail": "fail",
    "retry": "retry",
    "raise": "exception",
    "complete": "success",
}


@pytest.fixture
def fleet(dsn: str, tmp_path: Path) -> Iterator[Fleet]:
    with Fleet(dsn, tmp_path) as fleet:
        fleet.conn.execute("create table effect (job bigint, attempt integer)")
        yield fleet


def start(fleet: Fleet) -> Replica:
    return fleet.start_leader(**CALM, executors=EXECUTORS, threads="16")


def enqueue(fleet: Fleet, step: str, ways: dict[str, tuple[str, int, int]]) -> dict[str, int]:
    """A job that ends in each way; its first attempt stops at the step."""
    return {way: fleet.enqueue("ending", way=way, step=step, until=str(fleet.gate()))[0] for way in ways}


def until_there(fleet: Fleet, step: str, ids: dict[str, int]) -> None:
    until(lambda: {event.job for event in fleet.events(step)} >= set(ids.values()), f"all are at {step}")


def crash(fleet: Fleet, replica: Replica) -> None:
    """The process is gone between one instruction and the next; then there is another one."""
    replica.send(signal.SIGKILL)
    replica.wait()
    start(fleet)


def until_ended(fleet: Fleet, ids: dict[str, int], expected: dict[str, tuple[str, int, int]]) -> None:
    """All end, and as they should."""
    final = {"succeeded", "partial", "failed", "canceled"}
    until(lambda: set(fleet.states(ids.values()).values()) <= final, "all have ended")
    ended = {way: fleet.job(id) for way, id in ids.items()}
    found = {way: (job["state"], job["attempt"], job["failures"]) for way, job in ended.items()}
    assert found == {way: expected[way] for way in ids}
    for way, job in ended.items():
        assert job["result"] == ("ended" if job["state"] in ("succeeded", "partial") else None), way
        crashes = [error["attempt"] for error in job["errors"] if error["kind"] == "crash"]
        assert crashes == ([1] if job["attempt"] > 1 else []), way


def effects(fleet: Fleet, id: int) -> list[int]:
    """The attempts of a job whose writes are there."""
    return [attempt for (attempt,) in fleet.query("select attempt from effect where job = %s order by 1", id)]


def test_killed_before_the_work(fleet: Fleet) -> None:
    replica = start(fleet)
    ids = enqueue(fleet, "before", WAYS)
    until_there(fleet, "before", ids)
    crash(fleet, replica)
    until_ended(fleet, ids, WAYS)
    assert effects(fleet, ids["complete"]) == [2]


def test_killed_after_its_own_writes_before_complete(fleet: Fleet) -> None:
    replica = start(fleet)
    ids = enqueue(fleet, "written", {"complete": WAYS["complete"]})
    until_there(fleet, "written", ids)
    crash(fleet, replica)
    until_ended(fleet, ids, WAYS)
    assert effects(fleet, ids["complete"]) == [2]


def test_killed_after_complete_before_the_commit(fleet: Fleet) -> None:
    """Outcome and writes are gone together."""
    replica = start(fleet)
    ids = enqueue(fleet, "completed", {"complete": WAYS["complete"]})
    until_there(fleet, "completed", ids)
    crash(fleet, replica)
    until_ended(fleet, ids, WAYS)
    assert effects(fleet, ids["complete"]) == [2]


def test_killed_after_the_commit_before_the_return(fleet: Fleet) -> None:
    """What ended by ctx.complete has ended, once; the others run again."""
    replica = start(fleet)
    ids = enqueue(fleet, "committed", WAYS)
    until_there(fleet, "committed", ids)
    crash(fleet, replica)
    until_ended(fleet, ids, {**AFTER_THEIR_COMMIT, "complete": ("succeeded", 1, 0)})
    assert effects(fleet, ids["complete"]) == [1]
    assert effects(fleet, ids["return"]) == [1, 2]  # at least once


def test_killed_in_a_hook_when_the_end_was_decided_and_not_recorded(fleet: Fleet) -> None:
    """The hook is called again where the job is; after ctx.complete it was the one call."""
    replica = start(fleet)
    ids = enqueue(fleet, "hook", {way: WAYS[way] for way in HOOKS})
    until_there(fleet, "hook", ids)
    crash(fleet, replica)
    until_ended(fleet, ids, {**AFTER_THEIR_COMMIT, "complete": ("succeeded", 1, 0)})
    for way, id in ids.items():
        called = {(event.attempt, event.why) for event in fleet.events("hook called", job=id)}
        again = "success" if way in ("retry", "raise") else HOOKS[way]
        assert called == {(1, HOOKS[way])} | (set() if way == "complete" else {(1, "crash"), (2, again)}), way
    assert [event.why for event in fleet.events("final hook called")] == ["fail"]


def test_killed_when_the_outcome_was_on_its_way(fleet: Fleet) -> None:
    """The executors are back; their rows are locked by somebody, so that not one outcome can be recorded."""
    replica = start(fleet)
    ids = enqueue(fleet, "returning", WAYS)
    until_there(fleet, "returning", ids)
    with psycopg.connect(fleet.dsn) as somebody:
        somebody.execute("select from dispatcher.job where id = any(%s) for update", [list(ids.values())])
        fleet.gate().touch()
        until(lambda: {event.job for event in fleet.events("end")} >= set(ids.values()), "all executors are back")
        until(lambda: len(fleet.events("hook called")) >= len(HOOKS) - 1, "their hooks have been called")
        replica.send(signal.SIGKILL)
        replica.wait()
        # A statement that waits for a row would record its outcome yet: its server process knows of no death.
        until(lambda: not count_sessions(fleet.conn, "dispatcher completer"), "its session is gone")
        assert {way for way, id in ids.items() if fleet.states([id])[id] != "running"} == {"complete"}
        somebody.rollback()
    start(fleet)
    until_ended(fleet, ids, {**AFTER_THEIR_COMMIT, "complete": ("succeeded", 1, 0)})
    assert effects(fleet, ids["complete"]) == [1]


@pytest.mark.parametrize(
    ("way", "step"),
    [
        ("return", "before"),
        ("return", "returning"),
        ("return", "hook"),
        ("complete", "before"),
        ("complete", "written"),
        ("complete", "completed"),
        ("complete", "committed"),
        ("complete", "hook"),
    ],
)
def test_job_that_kills_its_own_process_at_a_step(fleet: Fleet, way: str, step: str) -> None:
    """The same with the signal from inside, at the very line."""
    replica = start(fleet)
    [id] = fleet.enqueue("ending", way=way, step=step, die=True)
    assert replica.wait() == -signal.SIGKILL
    start(fleet)
    once = way == "complete" and step in ("committed", "hook")
    until_ended(fleet, {way: id}, {**WAYS, **({"complete": ("succeeded", 1, 0)} if once else {})})
    if way == "complete":
        assert effects(fleet, id) == ([1] if once else [2])


def test_lost_attempt_fails_its_transaction_and_none_of_its_writes_stays(fleet: Fleet) -> None:
    """The job was taken away between its writes and ctx.complete, and another attempt ends it."""
    replica = start(fleet)
    ids = enqueue(fleet, "written", {"complete": WAYS["complete"]})
    until_there(fleet, "written", ids)
    id = ids["complete"]
    fleet.query(
        "update dispatcher.job set state = 'scheduled', owner = null, run_at = now() where id = %s returning id", id
    )
    until(lambda: fleet.states([id]) == {id: "succeeded"}, "the second attempt has ended it")
    fleet.gate().touch()
    until(lambda: replica.metric("dispatcher_stale_outcomes_total") == 1, "the first attempt has ended, too late")
    job = fleet.job(id)
    assert (job["state"], job["attempt"], job["failures"], job["errors"]) == ("succeeded", 2, 0, [])
    assert effects(fleet, id) == [2]


def test_job_that_takes_each_process_along_fails_for_good_and_its_final_hook_is_called(fleet: Fleet) -> None:
    """Nobody but the leader that finds it can call the hook: the job has no thread any more."""
    replica = start(fleet)
    [id] = fleet.enqueue("deadly")
    assert replica.wait() == -signal.SIGKILL
    replica = fleet.launch(executors=EXECUTORS)  # it may not even live until it is seen to lead
    assert replica.wait() == -signal.SIGKILL
    start(fleet)
    until(lambda: fleet.states([id]) == {id: "failed"}, "it has failed for good")
    until(lambda: fleet.events("final hook called", job=id), "the final hook has been called")
    assert [event.why for event in fleet.events("final hook called", job=id)] == ["crash"]
    assert [(event.attempt, event.why) for event in fleet.events("hook called", job=id)] == [(1, "crash"), (2, "crash")]


def test_killed_after_it_stored_a_file_leaves_none_once_the_job_is_removed(fleet: Fleet, tmp_path: Path) -> None:
    """The first attempt's file is named by no row; it goes with the job's all the same."""
    store = tmp_path / "store"
    settings = {"executors": EXECUTORS, "result_store": str(store), "max_result_bytes": "100"}
    replica = fleet.start_leader(**CALM, **settings)
    [id] = fleet.enqueue("stores", step="stored", die=True)
    assert replica.wait() == -signal.SIGKILL
    replica = fleet.start_leader(**CALM, **settings)
    until(lambda: fleet.states([id]) == {id: "succeeded"}, "it has succeeded")
    url = fleet.job(id)["result_url"]
    [installation] = store.iterdir()
    found = sorted(str(path.relative_to(installation)) for path in installation.rglob("*") if path.is_file())
    assert found == [f"{id}/1/file", f"{id}/2/file", f"{id}/2/result.json"]
    assert url == (installation / f"{id}/2/result.json").as_uri()
    with Client(fleet.dsn) as client:
        assert client.result(id) == "y" * 1000
    replica.send(signal.SIGTERM)
    assert replica.wait() == 0
    fleet.start_leader(**CALM, **settings, retention_succeeded="0s")
    until(lambda: not list(installation.iterdir()), "job and files are gone")
    assert fleet.states([id]) == {}


@pytest.mark.parametrize("location", ["/proc/nowhere", "nonsense://bucket", "ftp://me:secret@host/x"])
def test_replica_with_a_store_that_cannot_be_one_does_not_start(fleet: Fleet, location: str) -> None:
    replica = fleet.launch(result_store=location)
    assert replica.wait() == 1
    [line] = replica.log_file.read_text().splitlines()
    assert "store" in line
    assert "secret" not in line
    assert fleet.query("select from dispatcher.replica") == []
