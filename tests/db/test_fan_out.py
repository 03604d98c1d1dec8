"""fan_out: each child once whatever dies, results in the items' order, no child left when the job is canceled."""

import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from dispatcher_executors import fan_out as module
from dispatcher_executors import fan_out_results
from dispatcher_executors.fan_out import FanOutPayload
from pydantic import BaseModel, ConfigDict, ValidationError

from dispatcher.context import Context
from dispatcher.executor import Fail, Partial, executor
from dispatcher.job import Job, JobInfo, State
from dispatcher.testing import Queue, run_inline
from tests.db.running import until, value

Connection = psycopg.Connection[Any]


class Number(BaseModel):
    model_config = ConfigDict(extra="forbid")

    n: int
    tenant: str | None = None


@executor("double", payload=Number, max_attempts=1)
def double(job: Job, ctx: Context) -> Any:
    """Twice a number; 13 fails, 14 is partial, 15 ends canceled."""
    match job.payload.n:
        case 13:
            raise Fail("unlucky")
        case 14:
            return Partial(28, [{"message": "half of it"}])
    return job.payload.n * 2


@executor("add", max_attempts=1)
def add(job: Job, ctx: Context) -> Any:
    """The sum of a list."""
    return sum(job.payload["numbers"])


@executor("listing", max_attempts=1)
def listing(job: Job, ctx: Context) -> Any:
    """A list for others."""
    return {"files": [1, 2, 3], "none": 5}


@executor("large", max_attempts=1)
def large(job: Job, ctx: Context) -> Any:
    """A result that does not fit into its row."""
    return "x" * 3000


EXECUTORS = [module, double, add, listing, large]


@pytest.fixture
def queue(dsn: str, tmp_path: Any) -> Iterator[Queue]:
    with Queue(dsn, EXECUTORS, result_store=str(tmp_path / "store"), max_result_bytes=2000) as queue:
        yield queue


def end(queue: Queue, id: int) -> JobInfo:
    """Runs everything, also what sleeps; the job as it ended."""
    queue.drain(scheduled=True)
    return queue.client.get(id)


def wake_only(queue: Queue, id: int) -> JobInfo:
    """Runs what is pending; what sleeps is woken by others, or not."""
    queue.drain()
    return queue.client.get(id)


def children(conn: Connection, type: str = "double") -> list[tuple[int, str]]:
    return conn.execute("select id, state from dispatcher.job where type = %s order by id", [type]).fetchall()


# Results


def test_results_come_in_the_order_of_the_items(queue: Queue, conn: Connection) -> None:
    id = queue.enqueue("fan_out", {"type": "double", "items": [{"n": n} for n in (5, 1, 4)]})
    job = wake_only(queue, id)
    assert job.state is State.SUCCEEDED
    batch = value(conn, "select job_id from dispatcher.batch")
    assert job.result == {"batch": batch, "total": 3, "succeeded": 3, "failed": 0, "results": [10, 2, 8]}


def test_batch_that_ends_wakes_the_job_without_waiting_for_its_sleep(queue: Queue, conn: Connection) -> None:
    """drain() without `scheduled` runs nothing that is due later."""
    id = queue.enqueue("fan_out", {"type": "double", "items": [7], "key": "n"})
    assert wake_only(queue, id).attempt == 2


def test_lost_callback_costs_one_look(queue: Queue, conn: Connection) -> None:
    id = queue.enqueue("fan_out", {"type": "double", "items": [7], "key": "n"})
    run_one(queue)
    conn.execute("delete from dispatcher.job where type = 'fan_out_wake'")
    assert wake_only(queue, id).state is State.SCHEDULED
    assert end(queue, id).result["results"] == [14]


def run_one(queue: Queue) -> None:
    """One try of one job."""
    execution = queue._claim()
    assert execution is not None
    queue._pool.run(execution)
    while execution.key in queue._inflight:
        queue._completer.step()


def test_chunks_of_items(queue: Queue) -> None:
    items = list(range(10))
    id = queue.enqueue("fan_out", {"type": "add", "items": items, "key": "numbers", "chunk": 4, "fixed": {"x": 1}})
    assert wake_only(queue, id).result["results"] == [0 + 1 + 2 + 3, 4 + 5 + 6 + 7, 8 + 9]


def test_no_items_end_at_once(queue: Queue, conn: Connection) -> None:
    id = queue.enqueue("fan_out", {"type": "double", "items": []})
    assert wake_only(queue, id).result["results"] == []
    assert value(conn, "select count(*) from dispatcher.job") == 1


def test_items_from_the_result_of_another_job(queue: Queue) -> None:
    first = queue.enqueue("listing")
    payload = {"type": "double", "items_from": first, "field": "files", "key": "n"}
    assert wake_only(queue, queue.enqueue("fan_out", payload, after=first)).result["results"] == [2, 4, 6]


@pytest.mark.parametrize(
    ("field", "after", "said"),
    [
        ("none", True, "its result's field 'none' is no list"),
        (None, True, "its result is no list"),
        ("files", False, "was not enqueued after job"),
    ],
)
def test_items_that_are_no_list_or_not_ours_fail_for_good(
    queue: Queue, conn: Connection, field: str | None, after: bool, said: str
) -> None:
    first = queue.enqueue("listing")
    queue.drain()
    payload = {"type": "double", "items_from": first, "field": field, "key": "n"}
    job = wake_only(queue, queue.enqueue("fan_out", payload, after=first if after else None))
    assert (job.state, job.attempt) == (State.FAILED, 1)
    assert said in job.errors[0]["message"]
    assert children(conn) == []


def test_large_results_of_children_stay_in_the_store(queue: Queue) -> None:
    id = queue.enqueue("fan_out", {"type": "large", "items": [{}]})
    [entry] = wake_only(queue, id).result["results"]
    assert entry["result_url"].endswith("/result.json")


def test_large_list_of_results_goes_to_the_store(queue: Queue) -> None:
    id = queue.enqueue("fan_out", {"type": "double", "items": list(range(100, 800)), "key": "n"})
    job = wake_only(queue, id)
    assert job.result is None
    assert queue.client.result(id)["results"] == [2 * n for n in range(100, 800)]


def test_fan_out_of_fan_outs(queue: Queue) -> None:
    inner = [{"type": "double", "items": [n, n + 1], "key": "n"} for n in (1, 5)]
    job = wake_only(queue, queue.enqueue("fan_out", {"type": "fan_out", "items": inner}))
    assert [entry["results"] for entry in job.result["results"]] == [[2, 4], [10, 12]]


def test_who_joins_the_batch_later_is_not_in_the_results(queue: Queue, conn: Connection) -> None:
    id = queue.enqueue("fan_out", {"type": "double", "items": [1], "key": "n"})
    run_one(queue)
    queue.enqueue("double", {"n": 50}, parent=value(conn, "select job_id from dispatcher.batch"))
    assert wake_only(queue, id).result["results"] == [2]


# Failures


def test_failed_children_are_named_by_their_item(queue: Queue, conn: Connection) -> None:
    job = wake_only(queue, queue.enqueue("fan_out", {"type": "double", "items": [1, 13, 14], "key": "n"}))
    ids = [id for id, _ in children(conn)]
    assert job.state is State.PARTIAL
    assert job.result["results"] == [2, None, 28]
    assert (job.result["succeeded"], job.result["failed"]) == (2, 1)
    assert [(error["message"], error["item"]) for error in job.errors] == [
        (f"job {ids[1]} failed: unlucky", {"index": 1, "job": ids[1]}),
        (f"job {ids[2]} succeeded in part: half of it", {"index": 2, "job": ids[2]}),
    ]


def test_failures_can_be_ignored(queue: Queue) -> None:
    payload = {"type": "double", "items": [13, 13], "key": "n", "ignore_failures": True}
    job = wake_only(queue, queue.enqueue("fan_out", payload))
    assert (job.state, job.result["results"], job.result["failed"]) == (State.SUCCEEDED, [None, None], 2)


def test_all_failed_is_a_failure(queue: Queue) -> None:
    job = wake_only(queue, queue.enqueue("fan_out", {"type": "double", "items": [13, 13], "key": "n"}))
    assert job.state is State.FAILED
    assert job.errors[-1]["message"].startswith("all 2 jobs failed; to run them again, retry batch ")
    assert job.errors[-1]["message"].endswith("unlucky")


def test_many_errors_are_counted_and_some_listed(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fan_out_results, "MAX_ERRORS", 2)
    job = wake_only(queue, queue.enqueue("fan_out", {"type": "double", "items": [1, 13, 13, 13], "key": "n"}))
    assert (len(job.errors), job.result["failed"]) == (2, 3)


def test_small_payload_does_not_fill_the_disk(queue: Queue, conn: Connection) -> None:
    fixed = {"text": "x" * 300_000}
    id = queue.enqueue("fan_out", {"type": "add", "items": [1] * 200_000, "key": "n", "fixed": fixed})
    job = wake_only(queue, id)
    assert (job.state, len(children(conn, "add"))) == (State.FAILED, 0)
    assert "bytes of fixed" in job.errors[-1]["message"]


def test_many_results_do_not_fill_the_memory(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fan_out_results, "MOST_BYTES", 4)
    job = wake_only(queue, queue.enqueue("fan_out", {"type": "double", "items": [5, 6, 13, 7, 14], "key": "n"}))
    results = job.result["results"]
    assert [results[0], results[1], results[2]] == [10, 12, None]
    assert [queue.client.result(results[at]["job"]) for at in (3, 4)] == [14, 28]


def test_retry_of_the_batch_gathers_again(queue: Queue, conn: Connection) -> None:
    id = queue.enqueue("fan_out", {"type": "double", "items": [1, 13], "key": "n"})
    assert wake_only(queue, id).state is State.PARTIAL
    conn.execute("update dispatcher.job set payload = '{\"n\": 3}' where payload = '{\"n\": 13}'")
    queue.client.retry(value(conn, "select job_id from dispatcher.batch"))
    job = wake_only(queue, id)
    assert (job.state, job.result["results"]) == (State.SUCCEEDED, [2, 6])


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ({"type": "double", "items": [1, "x"], "key": "n"}, "payload 2: "),
        ({"type": "double", "items": [{"n": 1}, {"m": 1}]}, "payload 2: "),
        ({"type": "double", "items": [{"n": 1}, 5]}, "item 1 is no object: give key"),
        ({"type": "nobody", "items": [{}]}, "nobody"),
        ({"type": "double", "items": [1], "key": "n", "options": {"timeout": "soon"}}, "timeout"),
    ],
)
def test_child_that_does_not_fit_fails_the_whole_and_nothing_is_enqueued(
    queue: Queue, conn: Connection, payload: dict[str, Any], said: str
) -> None:
    job = wake_only(queue, queue.enqueue("fan_out", payload))
    assert (job.state, job.attempt) == (State.FAILED, 1)
    assert said in job.errors[0]["message"]
    assert value(conn, "select count(*) from dispatcher.job") == 1


# Once


def test_try_that_dies_before_the_commit_leaves_no_batch(
    queue: Queue, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = queue.enqueue("fan_out", {"type": "double", "items": [1], "key": "n"})
    with monkeypatch.context() as broken:
        broken.setattr(Context, "checkpoint", die)
        run_one(queue)
    assert children(conn) == []
    assert end(queue, id).result["results"] == [2]
    assert len(children(conn)) == 1


def die(*_: object) -> None:
    raise RuntimeError("the process dies here")


def test_try_that_dies_after_the_commit_enqueues_no_second_batch(
    queue: Queue, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = queue.enqueue("fan_out", {"type": "double", "items": [1], "key": "n"})
    with monkeypatch.context() as broken:
        broken.setattr(module, "Snooze", lambda _: RuntimeError("the process dies here"))
        run_one(queue)
    assert end(queue, id).result["results"] == [2]
    assert len(children(conn)) == 1
    assert value(conn, "select count(*) from dispatcher.batch") == 1


def test_inline_run_notes_the_children_and_the_callback(dsn: str) -> None:
    payload = {"type": "double", "items": [1, 2], "key": "n", "options": {"priority": 3}}
    ended = run_inline(module.fan_out, payload, connect=lambda: psycopg.connect(dsn), job_id=7, tenant="acme")
    assert (ended.state, ended.delay_s) == (State.SCHEDULED, 2.0)
    batch = ended.checkpoint["batch"]
    assert ended.checkpoint == {"batch": batch, "children": 2}
    assert [(job.type, job.payload) for job in ended.enqueued] == [
        ("double", {"n": 1}),
        ("double", {"n": 2}),
        ("fan_out_wake", {"job": 7}),
    ]
    assert {job.options.get("parent") for job in ended.enqueued[:2]} == {batch}
    assert {job.options.get("tenant") for job in ended.enqueued[:2]} == {"acme"}
    assert ended.enqueued[2].options == {"after": batch, "on_failure": "run"}


def test_children_have_the_tenant_and_the_options(queue: Queue, conn: Connection) -> None:
    options = {"priority": -3, "max_attempts": 4, "timeout": "90s"}
    payload = {"type": "double", "items": [1], "key": "n", "options": options}
    id = queue.enqueue("fan_out", payload, tenant="acme")
    run_one(queue)
    assert conn.execute("select distinct tenant from dispatcher.job").fetchall() == [("acme",)]
    assert conn.execute(
        "select priority, max_attempts, timeout_s from dispatcher.job where type = 'double'"
    ).fetchall() == [(-3, 4, 90.0)]
    assert wake_only(queue, id).state is State.SUCCEEDED


def test_wake_of_another_tenant_or_of_another_type_does_nothing(queue: Queue, conn: Connection) -> None:
    id = queue.enqueue("fan_out", {"type": "double", "items": [1], "key": "n"}, tenant="acme")
    run_one(queue)
    conn.execute("update dispatcher.job set state = 'succeeded', finished_at = now() where type = 'double'")
    conn.execute("delete from dispatcher.job where type = 'fan_out_wake'")
    sleeping = queue.enqueue("double", {"n": 1}, delay="1h")
    for other in (id, sleeping, 10**15):
        queue.enqueue("fan_out_wake", {"job": other}, tenant="evil")
        queue.enqueue("fan_out_wake", {"job": other if other != id else sleeping})
    queue.drain()
    assert [queue.client.get(one).state for one in (id, sleeping)] == [State.SCHEDULED, State.SCHEDULED]


def test_callback_that_comes_before_the_job_sleeps_comes_again(queue: Queue, conn: Connection, dsn: str) -> None:
    """Children may be done before the job's first try is settled."""
    id = queue.enqueue("fan_out", {"type": "double", "items": [1], "key": "n"})
    run_one(queue)
    conn.execute("update dispatcher.job set state = 'running' where id = %s", [id])
    run_one(queue)
    run_one(queue)
    wake = value(conn, "select id from dispatcher.job where type = 'fan_out_wake'")
    assert queue.client.get(wake).state is State.SCHEDULED
    conn.execute("update dispatcher.job set state = 'scheduled', run_at = now() + interval '1 day' where id = %s", [id])
    queue.client.retry(wake)
    assert wake_only(queue, id).result["results"] == [2]


# Cancel


def test_cancel_of_the_sleeping_job_cancels_what_is_open(queue: Queue, conn: Connection) -> None:
    id = queue.enqueue("fan_out", {"type": "double", "items": [1, 2, 3], "key": "n"})
    run_one(queue)
    run_one(queue)
    assert queue.client.get(id).state is State.SCHEDULED
    queue.client.cancel(id)
    assert sorted(state for _, state in children(conn)) == ["canceled", "canceled", "succeeded"]
    job = end(queue, id)
    assert (job.state, job.attempt) == (State.CANCELED, 1)


def test_cancel_reaches_the_children_of_children(queue: Queue, conn: Connection) -> None:
    inner = [{"type": "double", "items": [n], "key": "n"} for n in (1, 2)]
    id = queue.enqueue("fan_out", {"type": "fan_out", "items": inner})
    for _ in range(3):
        run_one(queue)
    queue.client.cancel(id)
    assert {state for _, state in children(conn)} == {"canceled"}
    assert {state for _, state in children(conn, "fan_out")} == {"canceled"}
    assert end(queue, id).state is State.CANCELED


def test_cancel_in_a_transaction_that_is_rolled_back_cancels_nothing(queue: Queue, conn: Connection, dsn: str) -> None:
    id = queue.enqueue("fan_out", {"type": "double", "items": [1], "key": "n"})
    run_one(queue)
    with psycopg.connect(dsn) as other:
        queue.client.cancel(id, conn=other)
        other.rollback()
    assert wake_only(queue, id).result["results"] == [2]


def test_cancel_while_the_batch_is_being_enqueued_leaves_none(
    queue: Queue, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cancel comes before the owner hears of it."""
    id = queue.enqueue("fan_out", {"type": "double", "items": [1], "key": "n"})
    enqueue_batch = Context.enqueue_batch

    def canceled_meanwhile(self: Context, *args: Any, **options: Any) -> int:
        assert queue.client.cancel(id) == "running"
        return enqueue_batch(self, *args, **options)

    monkeypatch.setattr(Context, "enqueue_batch", canceled_meanwhile)
    run_one(queue)
    assert queue.client.get(id).state is State.CANCELED
    assert children(conn) == []


def test_cancel_that_waits_for_the_batch_finds_it(
    queue: Queue, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes between the batch and its commit."""
    id = queue.enqueue("fan_out", {"type": "double", "items": [1], "key": "n"})
    checkpoint, canceler = Context.checkpoint, threading.Thread(target=queue.client.cancel, args=(id,))

    def cancel_and_go_on(self: Context, *args: Any) -> None:
        checkpoint(self, *args)
        canceler.start()
        waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
        until(lambda: value(conn, waiting))

    monkeypatch.setattr(Context, "checkpoint", cancel_and_go_on)
    run_one(queue)
    canceler.join(10)
    assert queue.client.get(id).state is State.CANCELED
    assert [state for _, state in children(conn)] == ["canceled"]


def test_batch_that_is_canceled_cancels_the_job(queue: Queue, conn: Connection) -> None:
    id = queue.enqueue("fan_out", {"type": "double", "items": [1, 2], "key": "n"})
    run_one(queue)
    queue.client.cancel(value(conn, "select job_id from dispatcher.batch"))
    assert wake_only(queue, id).state is State.CANCELED


def test_other_jobs_of_the_batch_s_job_are_left_alone(queue: Queue, conn: Connection) -> None:
    """Only the batches of the job that is canceled go with it."""
    first, second = (queue.enqueue("fan_out", {"type": "double", "items": [n], "key": "n"}) for n in (1, 2))
    run_one(queue)
    run_one(queue)
    queue.client.cancel(first)
    assert [state for _, state in children(conn)] == ["canceled", "pending"]
    assert wake_only(queue, second).result["results"] == [4]


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"items": [1], "items_from": 1},
        {"items": [1], "field": "x"},
        {"items": [1], "chunk": 2},
        {"items": [1], "key": "n", "fixed": {"n": 1}},
        {"items": [1], "key": "n", "options": {"tenant": "other"}},
        {"items": [1], "key": "n", "options": {"unique_key": "other"}},
        {"items_from": 0},
    ],
)
def test_payload_that_makes_no_sense_is_refused(payload: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FanOutPayload.model_validate({"type": "double", **payload})
