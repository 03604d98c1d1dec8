"""AsyncClient: the same answers as the Client's, on an event loop."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from dispatcher import AsyncClient, Client, State
from dispatcher.errors import (
    DatabaseUnavailable,
    InvalidOption,
    InvalidPayload,
    JobFailed,
    JobNotFound,
    PayloadTooLarge,
    UnknownType,
    WrongState,
)
from dispatcher.operations import CHUNK
from tests.db.front_door import MAX_BYTES, UNNOTICED, count, end, publish

Body = Callable[[AsyncClient], Awaitable[None]]


@pytest.fixture
def run(dsn: str, conn: psycopg.Connection[Any]) -> Callable[[Body], None]:
    publish(conn)

    def runner(body: Body) -> None:
        async def main() -> None:
            async with AsyncClient(dsn) as client:
                await body(client)

        asyncio.run(main())

    return runner


def test_it_has_every_method_of_the_client_with_the_same_parameters() -> None:
    def methods(kind: type) -> dict[str, list[str]]:
        public = {name: value for name, value in inspect.getmembers(kind, callable) if not name.startswith("_")}
        return {name: list(inspect.signature(value).parameters) for name, value in public.items()}

    assert methods(AsyncClient) == methods(Client)


def test_life_of_a_job(run: Callable[[Body], None], conn: psycopg.Connection[Any]) -> None:
    async def body(client: AsyncClient) -> None:
        id = await client.enqueue("any", {"x": "日本"}, delay=60, timeout="1min")
        job = await client.get(id)
        assert (job.payload, job.state, job.timeout) == ({"x": "日本"}, State.SCHEDULED, timedelta(minutes=1))
        assert await client.retry(id) == "pending"
        with pytest.raises(WrongState):
            await client.result(id)
        end(conn, id, "succeeded", result=[1])
        assert (await client.wait(id)).result == [1]
        assert await client.result(id) == [1]
        with pytest.raises(WrongState):
            await client.cancel(id)
        end(conn, id, "failed", error="boom")
        with pytest.raises(JobFailed, match="boom"):
            await client.result(id)
        assert [one.id for one in await client.list(state="failed")] == [id]
        first = await client.enqueue_unique("any", unique_key="k")
        assert await client.enqueue_unique("any", unique_key="k") == (first[0], False)
        assert await client.cancel(first[0]) == "canceled"
        assert {one.name for one in await client.types()} == {"any", "import"}
        assert await client.replicas() == []
        assert await client.leader() is None

    run(body)


def test_refusals_leave_nothing_behind(run: Callable[[Body], None], conn: psycopg.Connection[Any]) -> None:
    async def body(client: AsyncClient) -> None:
        with pytest.raises(UnknownType, match="known types: any, import"):
            await client.enqueue("nope")
        with pytest.raises(InvalidPayload, match=r"rows\.0\.name: is missing"):
            await client.enqueue("import", {"rows": [{}]})
        with pytest.raises(PayloadTooLarge, match=f"payload {CHUNK + 1}: .* the limit is {MAX_BYTES}"):
            await client.enqueue_many("any", [*[{}] * CHUNK, {"x": "x" * (9 * MAX_BYTES)}])
        with pytest.raises(InvalidOption):
            await client.enqueue("any", delay=-1)
        with pytest.raises(JobNotFound):
            await client.get(999)

    run(body)
    assert count(conn) == 0


def test_caller_s_rollback_takes_the_jobs_back(
    run: Callable[[Body], None], conn: psycopg.Connection[Any], dsn: str
) -> None:
    async def body(client: AsyncClient) -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as own:
            await client.enqueue("any", conn=own)
            assert len(await client.enqueue_many("any", [{}] * (CHUNK + 1), conn=own)) == CHUNK + 1
            await own.rollback()
        with pytest.raises(InvalidOption, match=r"must be a psycopg\.AsyncConnection"):
            await client.enqueue("any", conn=conn)  # type: ignore[arg-type]

    run(body)
    assert count(conn) == 0


def test_tasks_share_one_client(run: Callable[[Body], None], conn: psycopg.Connection[Any]) -> None:
    async def body(client: AsyncClient) -> None:
        ids = await asyncio.gather(*(client.enqueue("any", {"n": n}) for n in range(100)))
        assert len(set(ids)) == 100
        waiting = asyncio.create_task(client.wait(ids[0]))
        await client.get(ids[0])  # not kept from the connection by the one that waits
        end(conn, ids[0], "succeeded")
        assert (await waiting).state is State.SUCCEEDED
        with pytest.raises(TimeoutError):
            await client.wait(ids[1], timeout=0.02)

    run(body)


def test_canceled_task_leaves_a_usable_client(run: Callable[[Body], None], conn: psycopg.Connection[Any]) -> None:
    async def body(client: AsyncClient) -> None:
        conn.execute("begin")
        conn.execute("lock table dispatcher.job in access exclusive mode")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.enqueue("any"), 0.2)
        conn.execute("rollback")
        assert await client.enqueue("any")

    run(body)


def test_lost_connection_is_replaced(run: Callable[[Body], None], conn: psycopg.Connection[Any]) -> None:
    async def body(client: AsyncClient) -> None:
        await client.enqueue("any")
        assert client._conn is not None
        conn.execute("select pg_terminate_backend(%s, 5000)", (client._conn.info.backend_pid,))
        await client.enqueue("any")

    run(body)
    assert count(conn) == 2


def test_a_prepared_statement_that_another_session_does_not_know_is_sent_unprepared(
    run: Callable[[Body], None], conn: psycopg.Connection[Any]
) -> None:
    async def body(client: AsyncClient) -> None:
        await client.enqueue("any")
        assert client._conn is not None
        await client._conn.execute(UNNOTICED)
        for _ in range(2):
            await client.enqueue("any")
        assert client._conn.prepare_threshold is None

    run(body)
    assert count(conn) == 3


def test_unreachable_server_is_one_line_without_the_password() -> None:
    async def body() -> None:
        async with AsyncClient("postgresql://u:s3cret@127.0.0.1:1/db") as client:
            await client.get(1)

    with pytest.raises(DatabaseUnavailable) as caught:
        asyncio.run(body())
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)
