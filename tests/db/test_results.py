"""Results and files in the store: written before the row says so, read back by every front door, gone with the job."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dispatcher import AsyncClient, Client, Partial, executor
from dispatcher.cli import main
from dispatcher.context import Context
from dispatcher.db import Connection
from dispatcher.errors import AttemptLost, StoreError
from dispatcher.job import Job
from dispatcher.metrics import Metrics
from dispatcher.outcome import Outcome
from dispatcher.queries import outcomes
from dispatcher.runtime import JobRuntime
from dispatcher.services import pruner as pruner_module
from dispatcher.services.pruner import Pruner
from dispatcher.store import Store, open_store, read
from dispatcher.testing import Queue
from tests.db.running import OWNER, as_job, claim, enqueue, publish, session, state, value

LARGE = "ä" * 100_000
LIMIT = 1000


@executor("large")
def large(_job: Job, _ctx: Context) -> str:
    """Returns more than a row may hold."""
    return LARGE


@executor("files", max_attempts=2)
def files(job: Job, ctx: Context) -> Any:
    """Stores two files, and ends as it is told."""
    first = ctx.store("a.txt", b"first")
    ctx.store("b.txt", b"second")
    match job.payload.get("end"):
        case "partial":
            return Partial({"first": first}, [{"message": "x"}])
        case "large":
            return LARGE
        case "fail":
            raise ValueError("no")
        case "complete":
            with ctx.connect() as conn:
                ctx.complete(conn, {"first": first})
            return None
        case "complete large":
            with ctx.connect() as conn:
                ctx.complete(conn, LARGE)
            return None
        case "nothing":
            return None
    return {"first": first}


@pytest.fixture
def queue(dsn: str, tmp_path: Path) -> Iterator[Queue]:
    with Queue(dsn, [large, files], result_store=str(tmp_path), max_result_bytes=LIMIT) as queue:
        yield queue


@pytest.fixture
def bare(dsn: str) -> Iterator[Queue]:
    """Without a store."""
    with Queue(dsn, [large, files], max_result_bytes=LIMIT) as queue:
        yield queue


def key(url: str | None) -> str:
    """Of a URL, what stands behind the installation."""
    assert url is not None
    return "/".join(url.split("/")[-3:])


async def async_result(dsn: str, id: int) -> Any:
    async with AsyncClient(dsn) as client:
        return await client.result(id)


def test_large_result_is_in_the_store_and_read_back_by_every_front_door(dsn: str, queue: Queue) -> None:
    id = queue.enqueue("large")
    [ended] = queue.drain()
    assert (ended.state, ended.result, key(ended.result_url)) == ("succeeded", None, f"{id}/1/result.json")
    assert queue.client.result(id) == LARGE
    assert asyncio.run(async_result(dsn, id)) == LARGE
    printed = CliRunner().invoke(main, ["job", "result", str(id), "--dsn", dsn])
    assert (printed.exit_code, json.loads(printed.stdout)) == (0, LARGE)


@pytest.mark.parametrize(
    ("end", "expected_state", "name", "result"),
    [
        ("return", "succeeded", "b.txt", "first"),
        ("nothing", "succeeded", "b.txt", None),
        ("partial", "partial", "b.txt", "first"),
        ("large", "succeeded", "result.json", LARGE),
        ("complete", "succeeded", "b.txt", "first"),
        ("complete large", "succeeded", "result.json", LARGE),
    ],
)
def test_row_names_the_latest_file_or_the_large_result(
    queue: Queue, end: str, expected_state: str, name: str, result: Any
) -> None:
    id = queue.enqueue("files", {"end": end})
    [ended] = queue.drain()
    assert (ended.state, key(ended.result_url)) == (expected_state, f"{id}/1/{name}")
    found = queue.client.result(id)
    if result == "first":
        assert read(found["first"]) == b"first"
    else:
        assert found == result


def test_failed_job_names_no_file(queue: Queue) -> None:
    queue.enqueue("files", {"end": "fail"})
    [ended] = queue.drain(scheduled=True)
    assert (ended.state, ended.attempt, ended.result_url) == ("failed", 2, None)


def test_retried_job_names_no_file_of_an_older_attempt(queue: Queue) -> None:
    id = queue.enqueue("files", {"end": "partial"})
    queue.drain()
    queue.client.retry(id)
    assert queue.client.get(id).result_url is None
    [ended] = queue.drain()
    assert key(ended.result_url) == f"{id}/2/b.txt"


def test_large_result_without_a_store_fails_for_good_and_names_both_settings(bare: Queue) -> None:
    bare.enqueue("large")
    [ended] = bare.drain()
    assert (ended.state, ended.attempt, ended.errors[0]["kind"]) == ("failed", 1, "result")
    for setting in ("result_store", "max_result_bytes"):
        assert setting in ended.errors[0]["message"]


def test_large_result_of_complete_without_a_store_fails_for_good_and_nothing_stays(dsn: str, conn: Connection) -> None:
    @executor("own")
    def own(_job: Job, ctx: Context) -> None:
        with ctx.connect() as mine:
            mine.execute("insert into effect values (1)")
            ctx.complete(mine, LARGE)

    conn.execute("create table effect (n integer)")
    with Queue(dsn, [own], max_result_bytes=LIMIT) as queue:
        queue.enqueue("own")
        [ended] = queue.drain()
    assert (ended.state, ended.attempt, ended.errors[0]["kind"]) == ("failed", 1, "result")
    assert value(conn, "select count(*) from effect") == 0


def test_file_without_a_store_is_one_clear_error(bare: Queue) -> None:
    bare.enqueue("files", max_attempts=1)
    [ended] = bare.drain()
    assert "StoreError: there is no store: give the replicas the setting result_store" in ended.errors[0]["message"]


def test_result_that_cannot_be_stored_is_tried_again(queue: Queue, tmp_path: Path) -> None:
    """The disk is full, the network is down: the work is done once more rather than lost."""
    id = queue.enqueue("large")
    installation = next(tmp_path.iterdir())
    (installation / str(id)).touch()  # where its folder should be
    queue.drain()
    waiting = queue.client.get(id)
    assert (waiting.state, waiting.failures, waiting.errors[0]["kind"]) == ("scheduled", 1, "result")
    assert "could not be stored" in waiting.errors[0]["message"]
    (installation / str(id)).unlink()
    [ended] = queue.drain(scheduled=True)
    assert queue.client.result(ended.id) == LARGE


def test_result_that_is_gone_is_one_clear_error(dsn: str, queue: Queue) -> None:
    id = queue.enqueue("large")
    [ended] = queue.drain()
    assert ended.result_url is not None
    Path(ended.result_url.removeprefix("file://")).unlink()
    with pytest.raises(StoreError, match="not there"):
        queue.client.result(id)
    printed = CliRunner().invoke(main, ["job", "result", str(id), "--dsn", dsn])
    assert printed.exit_code == 1
    assert "not there" in printed.stderr


# ctx.complete


@pytest.fixture
def running(dsn: str, conn: Connection, tmp_path: Path) -> Iterator[tuple[Context, Store]]:
    """A job that runs, with a store."""
    publish(conn)
    enqueue(conn)
    with session(dsn) as lease:
        (claimed,) = claim(lease)
    installation = value(conn, "select id from dispatcher.installation")
    store = open_store(str(tmp_path), installation)
    runtime = JobRuntime(dsn=dsn, installation=installation, owner=OWNER, store=store, max_result_bytes=LIMIT)
    yield Context(as_job(claimed), timeout_s=60.0, runtime=runtime), store
    runtime.close()


def test_large_result_is_stored_before_its_row_says_so(conn: Connection, running: tuple[Context, Store]) -> None:
    ctx, store = running
    with ctx.connect() as own:
        ctx.complete(own, LARGE)
        assert list(store.job_ids()) == [ctx.job.id]
        assert state(conn, ctx.job.id) == "running"
        own.rollback()
    assert value(conn, "select result_url is null from dispatcher.job")


def test_lost_attempt_names_no_file(conn: Connection, running: tuple[Context, Store]) -> None:
    ctx, _ = running
    conn.execute("update dispatcher.job set attempt = 2")
    with ctx.connect() as own, pytest.raises(AttemptLost):
        ctx.complete(own, LARGE)
    assert value(conn, "select result_url is null from dispatcher.job")


def test_jobs_are_enqueued_in_the_transaction_that_completes_one(
    conn: Connection, running: tuple[Context, Store]
) -> None:
    ctx, _ = running
    with ctx.connect() as own:
        ctx.enqueue("slow", {"n": 1}, conn=own)
        ctx.complete(own, 1)
        own.rollback()
    assert value(conn, "select count(*) from dispatcher.job") == 1
    with ctx.connect() as own:
        next_id = ctx.enqueue("slow", {"n": 2}, conn=own)
        ctx.complete(own, 1)
        assert value(conn, "select count(*) from dispatcher.job") == 1
    assert (state(conn, ctx.job.id), state(conn, next_id)) == ("succeeded", "pending")


def test_lost_attempt_enqueues_nothing(conn: Connection, running: tuple[Context, Store]) -> None:
    ctx, _ = running
    conn.execute("update dispatcher.job set attempt = 2")
    with ctx.connect() as own:
        ctx.enqueue("slow", {"n": 1}, conn=own)
        with pytest.raises(AttemptLost):
            ctx.complete(own)
        own.commit()
    assert value(conn, "select count(*) from dispatcher.job") == 1


def test_completion_by_three_arguments_goes_on_working(conn: Connection, running: tuple[Context, Store]) -> None:
    """As replicas of the version before call it."""
    ctx, _ = running
    with ctx.connect() as own:
        own.execute("select dispatcher.complete(%s, %s, '{}'::jsonb)", [ctx.job.id, ctx.attempt])
    assert state(conn, ctx.job.id) == "succeeded"


# The hot update


@pytest.mark.parametrize("free_only", [False, True])
def test_outcome_with_a_url_touches_no_index(dsn: str, conn: Connection, free_only: bool) -> None:
    publish(conn)
    for _ in range(50):
        enqueue(conn)
    with session(dsn) as daemon:
        claimed = claim(daemon)
        conn.execute("vacuum dispatcher.job")

        def hot_updates() -> int:
            return int(value(daemon, "select pg_stat_get_xact_tuples_hot_updated('dispatcher.job'::regclass)"))

        with daemon.transaction():
            before = hot_updates()
            results = [
                Outcome.succeeded(as_job(each), None)._replace(
                    result_url=f"file:///x/{each.id}" if each.id % 2 else None
                )
                for each in claimed
            ]
            assert len(outcomes.finish_jobs(daemon, OWNER, results, free_only=free_only)) == 50
            assert hot_updates() - before > 25  # those that find room on their page
    urls: dict[int, str | None] = dict(conn.execute("select id, result_url from dispatcher.job").fetchall())
    assert urls == {each.id: f"file:///x/{each.id}" if each.id % 2 else None for each in claimed}


# Retention


class Clock:
    """Turned by the test."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(conn: Connection, tmp_path: Path) -> Store:
    return open_store(str(tmp_path), value(conn, "select id from dispatcher.installation"))


@pytest.fixture
def pruner(dsn: str, store: Store, clock: Clock) -> Iterator[Pruner]:
    """Keeps nothing that has ended."""
    stop = threading.Event()
    stop.set()
    pruner = Pruner(
        open_session=lambda: session(dsn),
        leading=lambda: True,
        keep_succeeded=timedelta(0),
        keep_failed=timedelta(0),
        store=store,
        metrics=Metrics(),
        stop=stop,
        clock=clock,
    )
    yield pruner
    pruner.close()


def walk(pruner: Pruner) -> None:
    while not pruner.prune_page():
        pass


def sweep(pruner: Pruner) -> int:
    """A walk through the store; how many pages."""
    for page in range(1, 100):
        if pruner.sweep_page():
            return page
    raise AssertionError("no end")


def test_files_go_with_their_job_all_attempts_of_it(queue: Queue, store: Store, pruner: Pruner) -> None:
    ids = [queue.enqueue("files", {"end": end}) for end in ("return", "partial", "large", "complete")]
    queue.drain()
    queue.client.retry(ids[1])
    queue.drain()
    assert sorted(store.job_ids()) == ids
    walk(pruner)
    assert list(store.job_ids()) == []


def test_files_of_failed_attempts_and_of_a_crash_between_row_and_files_are_swept(
    conn: Connection, queue: Queue, store: Store, pruner: Pruner, clock: Clock
) -> None:
    failed, ended = queue.enqueue("files", {"end": "fail"}), queue.enqueue("files")
    queue.drain(scheduled=True)
    conn.execute("delete from dispatcher.job where id = %s", [ended])  # as if the process had died right after
    assert sweep(pruner) == 1
    assert list(store.job_ids()) == [failed]
    walk(pruner)  # its row names no file
    assert list(store.job_ids()) == [failed]
    assert sweep(pruner) == 1  # not so soon again
    assert list(store.job_ids()) == [failed]
    clock.now += pruner_module.SWEEP_EVERY_S + 1
    assert sweep(pruner) == 1
    assert list(store.job_ids()) == []


def test_sweep_spares_jobs_that_exist_and_those_of_a_database_that_is_ahead(
    conn: Connection, queue: Queue, store: Store, pruner: Pruner
) -> None:
    """A copy of a database knows nothing of the jobs that the original enqueued afterwards."""
    id = queue.enqueue("files", delay=3600)
    conn.execute("update dispatcher.job set state = 'running', attempt = 1")
    store.put(id, 1, "x", b"of a job that runs", lambda: None)
    ahead = store.put(id + 1000, 1, "x", b"of another database", lambda: None)
    sweep(pruner)
    assert sorted(store.job_ids()) == [id, id + 1000]
    assert read(ahead)


def test_sweep_goes_page_by_page(
    conn: Connection, queue: Queue, store: Store, pruner: Pruner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruner_module, "PAGE", 3)
    ids = [queue.enqueue("files") for _ in range(8)]
    queue.drain()
    conn.execute("delete from dispatcher.job where id <> %s", [ids[3]])
    assert sweep(pruner) == 3
    assert list(store.job_ids()) == [ids[3]]


class Broken:
    """A store that is away."""

    def __init__(self) -> None:
        self.asked = 0

    def remove(self, job_id: int) -> None:
        self.asked += 1
        raise OSError("the store is away")

    def job_ids(self) -> Iterator[int]:
        raise OSError("the store is away")

    def put(self, *_: Any) -> str:
        raise NotImplementedError


def test_store_that_is_away_costs_rows_nothing_and_is_not_asked_for_each_job(
    conn: Connection, queue: Queue, store: Store, pruner: Pruner, clock: Clock
) -> None:
    for _ in range(20):
        queue.enqueue("files")
    queue.drain()
    pruner._store = broken = Broken()
    pruner.step()
    assert value(conn, "select count(*) from dispatcher.job") == 0
    assert broken.asked == pruner_module.MAX_TROUBLES
    assert len(list(store.job_ids())) == 20
    pruner._store = store
    clock.now += pruner_module.SWEEP_EVERY_S + 1
    pruner._stop.clear()  # it opens a session only while nobody stops it
    pruner.prune_page()
    sweep(pruner)
    assert list(store.job_ids()) == []


def test_client_reads_from_a_store_of_fsspec(dsn: str) -> None:
    with Queue(dsn, [large], result_store=f"memory://{time.monotonic_ns()}", max_result_bytes=LIMIT) as queue:
        id = queue.enqueue("large")
        [ended] = queue.drain()
        assert (ended.result_url or "").startswith("memory://")
        with Client(dsn) as client:
            assert client.result(id) == LARGE


def test_completion_is_not_for_everybody(conn: Connection) -> None:
    granted = conn.execute(
        "select p.oid::regprocedure::text from pg_proc p, aclexplode(p.proacl) a"
        " where p.proname = 'complete' and a.grantee = 0"
    ).fetchall()
    assert granted == []
