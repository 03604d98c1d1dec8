"""ctx.complete and ctx.checkpoint: a job's own writes and its row stand or fall together."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg.rows import dict_row

from dispatcher.context import Context
from dispatcher.db import Connection
from dispatcher.embedded import EmbeddedPostgres
from dispatcher.errors import AttemptLost, UnsafeTransaction
from dispatcher.executor import Registry
from dispatcher.runtime import JobRuntime
from tests import servers
from tests.db.running import OWNER, as_job, claim, enqueue, job, publish, session, state, value


@pytest.fixture
def ctx(dsn: str, conn: Connection) -> Iterator[Context]:
    """The context of a job that runs."""
    publish(conn)
    conn.execute("create table effect (n integer)")
    enqueue(conn)
    with session(dsn) as lease:
        (claimed,) = claim(lease)
    installation = value(conn, "select id from dispatcher.installation")
    runtime = JobRuntime(dsn=dsn, installation=installation, owner=OWNER, registry=Registry())
    yield Context(as_job(claimed), timeout_s=60.0, runtime=runtime)
    runtime.close()


def effects(conn: Connection) -> int:
    return int(value(conn, "select count(*) from effect"))


def test_effect_and_outcome_commit_together(conn: Connection, ctx: Context) -> None:
    with ctx.connect() as own:
        own.execute("insert into effect values (1)")
        ctx.complete(own, {"rows": 1})
        assert state(conn, ctx.job.id) == "running"  # not before the commit
        assert effects(conn) == 0
    row = job(conn, ctx.job.id)
    assert (row["state"], row["result"], effects(conn)) == ("succeeded", {"rows": 1}, 1)
    assert ctx.completed


@pytest.mark.parametrize(
    "write",
    [
        lambda ctx, own: ctx.complete(own),
        lambda ctx, own: ctx.checkpoint(own, {"line": 1}),
        lambda ctx, own: ctx.enqueue_batch("quick", [{}], conn=own),
    ],
    ids=["complete", "checkpoint", "batch"],
)
def test_an_attempt_whose_number_a_promoted_server_gave_out_again_is_not_ours(
    conn: Connection, ctx: Context, write: Callable[[Context, Connection], None]
) -> None:
    """It had not received our claim: the same job runs as the same attempt at another replica."""
    conn.execute("update dispatcher.job set owner = 2 where id = %s", (ctx.job.id,))
    before = job(conn, ctx.job.id)
    with ctx.connect() as own:
        own.execute("insert into effect values (1)")
        with pytest.raises(AttemptLost, match="no longer the running one"):
            write(ctx, own)
    assert (job(conn, ctx.job.id), effects(conn)) == (before, 0)


def test_completion_without_a_result_has_none(conn: Connection, ctx: Context) -> None:
    with ctx.connect() as own:
        ctx.complete(own)
    assert value(conn, "select result is null from dispatcher.jobs")


def test_rollback_leaves_nothing(conn: Connection, ctx: Context) -> None:
    with ctx.connect() as own:
        own.execute("insert into effect values (1)")
        ctx.complete(own)
        own.rollback()
    assert (state(conn, ctx.job.id), effects(conn)) == ("running", 0)


def test_checkpoint_commits_with_the_effect_and_is_there_for_the_next_attempt(
    dsn: str, conn: Connection, ctx: Context
) -> None:
    with ctx.connect() as own:
        own.execute("insert into effect values (1)")
        ctx.checkpoint(own, {"line": 1000})
        own.commit()
        own.execute("insert into effect values (2)")
        ctx.checkpoint(own, {"line": 2000})
        own.rollback()
    assert effects(conn) == 1
    conn.execute("update dispatcher.job set state = 'pending'")
    with session(dsn) as lease:
        (again,) = claim(lease)
    assert (again.attempt, again.checkpoint) == (2, '{"line": 1000}')


@pytest.mark.parametrize("verb", ["complete", "checkpoint"])
def test_savepoint_is_refused(conn: Connection, ctx: Context, verb: str) -> None:
    """Inside one the caller could swallow the loss of the attempt and commit the rest."""
    with ctx.connect() as own:
        own.execute("insert into effect values (1)")
        with pytest.raises(UnsafeTransaction, match="savepoint"), own.transaction():
            getattr(ctx, verb)(own, {})
    assert state(conn, ctx.job.id) == "running"
    assert not ctx.completed


@pytest.mark.parametrize("verb", ["complete", "checkpoint"])
def test_autocommit_is_refused(dsn: str, conn: Connection, ctx: Context, verb: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as own, pytest.raises(UnsafeTransaction, match="autocommit"):
        getattr(ctx, verb)(own, {})
    assert state(conn, ctx.job.id) == "running"
    assert not ctx.completed


def test_transaction_block_on_an_autocommit_connection_will_do(dsn: str, conn: Connection, ctx: Context) -> None:
    with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as own, own.transaction():
        own.execute("insert into effect values (1)")
        ctx.complete(own, 1)
    assert (state(conn, ctx.job.id), effects(conn)) == ("succeeded", 1)


@pytest.mark.parametrize("verb", ["complete", "checkpoint"])
@pytest.mark.parametrize("migrated", [True, False], ids=["another installation", "no schema"])
def test_other_database_is_refused(
    server: EmbeddedPostgres, conn: Connection, ctx: Context, verb: str, migrated: bool
) -> None:
    """A database with a dispatcher of its own might even have a running job of the same id and attempt."""
    name = servers.add_database(server, template=servers.MIGRATED if migrated else "template1")
    try:
        with psycopg.connect(servers.role_dsn(server, name)) as other:
            if migrated:
                publish(other)
                # A database made from a copy of ours would be another installation by name only.
                other.execute("update dispatcher.installation set id = gen_random_uuid()")
                enqueue(other)
                other.execute("update dispatcher.job set state = 'running', attempt = 1, owner = 1")
                other.commit()
            with pytest.raises(UnsafeTransaction, match="another database"):
                getattr(ctx, verb)(other, {})
            other.rollback()
            if migrated:
                assert state(other, 1) == "running"
    finally:
        servers.drop_database(server, name)
    assert state(conn, ctx.job.id) == "running"


@pytest.mark.parametrize("verb", ["complete", "checkpoint"])
@pytest.mark.parametrize(
    "loss",
    ["attempt = 2", "state = 'pending'", "state = 'canceled'"],
    ids=["claimed anew", "given back", "ended"],
)
def test_lost_attempt_raises_and_nothing_stays(conn: Connection, ctx: Context, verb: str, loss: str) -> None:
    conn.execute(f"update dispatcher.job set {loss}".encode())
    with ctx.connect() as own:
        own.execute("insert into effect values (1)")
        with pytest.raises(AttemptLost):
            getattr(ctx, verb)(own, {"late": True})
        own.commit()  # an executor that swallows the error: the transaction is gone all the same
    assert effects(conn) == 0
    assert value(conn, "select result is null and checkpoint is null from dispatcher.job")
    assert not ctx.completed


def test_completed_job_cannot_be_completed_twice(conn: Connection, ctx: Context) -> None:
    with ctx.connect() as own:
        ctx.complete(own, 1)
    with ctx.connect() as own, pytest.raises(AttemptLost):
        ctx.complete(own, 2)
    assert job(conn, ctx.job.id)["result"] == 1


def test_enqueue_stands_or_falls_with_the_job_s_transaction(conn: Connection, ctx: Context) -> None:
    with ctx.connect() as own:
        rolled_back = ctx.enqueue("slow", {"n": 1}, conn=own)
        own.rollback()
        kept = ctx.enqueue("slow", {"n": 2}, conn=own, priority=3)
    at_once = ctx.enqueue("slow", {"n": 3})
    found = {id for (id,) in conn.execute("select id from dispatcher.job where type = 'slow'")}
    assert found == {kept, at_once}
    assert rolled_back not in found
    assert job(conn, kept)["priority"] == 3
