"""ctx.enqueue_batch: a batch that commits with its job's other work, and is canceled with the job."""

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from dispatcher.context import Context
from dispatcher.errors import AttemptLost, InvalidPayload, UnsafeTransaction
from dispatcher.executor import Executor, Registry, Snooze
from dispatcher.job import Job, State
from dispatcher.testing import Queue
from tests.db.running import QUICK, value

Connection = psycopg.Connection[Any]
Work = Callable[[Job, Context], Any]


@pytest.fixture
def queue(dsn: str) -> Iterator[Queue]:
    parent = Executor("parent", lambda job, ctx: WORK[job.payload["work"]](job, ctx), "tests.parent")
    with Queue(dsn, Registry([QUICK, parent])) as made:
        yield made


def plain(job: Job, ctx: Context) -> int:
    """Without a connection: at once."""
    return ctx.enqueue_batch("quick", [{"n": 1}, {"n": 2}], callback="quick", priority=5)


def sleepy(job: Job, ctx: Context) -> None:
    """Two batches, and asleep."""
    for _ in range(2):
        ctx.enqueue_batch("quick", [{}])
    raise Snooze(3600)


def undone(job: Job, ctx: Context) -> None:
    """Rolled back."""
    with ctx.connect() as conn:
        ctx.enqueue_batch("quick", [{}], conn=conn)
        conn.rollback()


def unsafe(job: Job, ctx: Context) -> str:
    """In autocommit the batch would be there before it was the job's own."""
    with ctx.connect() as conn:
        conn.autocommit = True
        with pytest.raises(UnsafeTransaction):
            ctx.enqueue_batch("quick", [{}], conn=conn)
    return "refused"


def late(job: Job, ctx: Context) -> str:
    """After the attempt was taken away."""
    with ctx.connect() as conn:
        conn.execute("update dispatcher.job set attempt = attempt + 1 where id = %s", [job.id])
        with pytest.raises(AttemptLost):
            ctx.enqueue_batch("quick", [{}], conn=conn)
        conn.rollback()
    return "refused"


def asked(job: Job, ctx: Context) -> int:
    """After somebody asked the job to stop, which nobody has told it."""
    with ctx.connect() as conn:
        conn.execute("select dispatcher.cancel(%s)", [job.id])
    return ctx.enqueue_batch("quick", [{}])


def ended(job: Job, ctx: Context) -> str:
    """After it has completed itself: nothing would gather the batch, and nothing cancel it."""
    with ctx.connect() as conn:
        ctx.complete(conn)
    with pytest.raises(AttemptLost):
        ctx.enqueue_batch("quick", [{}])
    return "refused"


def wrong(job: Job, ctx: Context) -> str:
    """The second payload is no object."""
    with pytest.raises(InvalidPayload):
        ctx.enqueue_batch("quick", [{}, 5])
    return "refused"


WORK: dict[str, Work] = {
    "plain": plain,
    "sleepy": sleepy,
    "undone": undone,
    "unsafe": unsafe,
    "late": late,
    "asked": asked,
    "ended": ended,
    "wrong": wrong,
}


def test_batch_without_a_connection_is_there_at_once(queue: Queue, conn: Connection) -> None:
    id = queue.enqueue("parent", {"work": "plain"})
    queue.drain()
    job = queue.client.get(id)
    batch = queue.client.get_batch(job.result)
    assert (batch.state, batch.total, batch.succeeded) == (State.SUCCEEDED, 2, 2)
    assert batch.callback_id is not None
    assert value(conn, "select made_by from dispatcher.batch") == id
    assert conn.execute("select priority from dispatcher.job where parent_id = %s", [batch.id]).fetchall() == [(5,)] * 2


def test_all_batches_of_a_sleeping_job_are_canceled_with_it(queue: Queue, conn: Connection) -> None:
    id = queue.enqueue("parent", {"work": "sleepy"}, priority=-1)
    conn.execute("select dispatcher.pause('quick')")
    queue.enqueue("quick", priority=9)
    execution = queue._claim()
    assert execution is not None
    queue._pool.run(execution)
    while execution.key in queue._inflight:
        queue._completer.step()
    queue.client.cancel(id)
    states = "select state, count(*) from dispatcher.job where type = 'quick' group by state order by state"
    assert conn.execute(states).fetchall() == [("canceled", 2), ("pending", 1)]


@pytest.mark.parametrize("work", ["undone", "unsafe", "late", "asked", "ended", "wrong"])
def test_batch_that_must_not_be_is_not(queue: Queue, conn: Connection, work: str) -> None:
    queue.enqueue("parent", {"work": work})
    queue.drain()
    assert value(conn, "select count(*) from dispatcher.batch") == 0
    assert value(conn, "select count(*) from dispatcher.job") == 1
