"""While the database is away: an answer within a second, no pile of requests, and back without help."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psycopg
import pytest
from psycopg import conninfo

from dispatcher.api import database
from dispatcher.embedded import EmbeddedPostgres
from dispatcher.queries.operation import Rows, ask_async
from tests.db.running import enqueue, publish, until
from tests.db.serving import Served
from tests.proxy import TcpProxy
from tests.timing import quickest

WITHIN_S = 1.5  # a second, and a little: for the quickest of some, since a busy machine adds to each
AT_MOST_S = 8.0  # with all that it may add; without the pulse it would be ten or more


@pytest.fixture
def admin(postgres_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """The test's own connection, which no fault touches."""
    with psycopg.connect(postgres_dsn, autocommit=True) as conn:
        publish(conn)
        yield conn


@pytest.fixture
def proxy(postgres_dsn: str) -> Iterator[TcpProxy]:
    with TcpProxy("127.0.0.1", int(str(conninfo.conninfo_to_dict(postgres_dsn)["port"]))) as proxy:
        yield proxy


@pytest.fixture
def far(postgres_dsn: str, proxy: TcpProxy, admin: psycopg.Connection[Any]) -> Iterator[Served]:
    """A server behind the proxy."""
    with Served(conninfo.make_conninfo(postgres_dsn, port=proxy.port)) as served:
        yield served


def timed(caller: httpx.Client, method: str, path: str, **more: Any) -> tuple[httpx.Response, float]:
    began = time.monotonic()
    return caller.request(method, path, **more), time.monotonic() - began


@pytest.mark.parametrize("how", ["cut", "silent"])
def test_requests_fail_within_a_second_and_work_again_by_themselves(
    far: Served, proxy: TcpProxy, admin: psycopg.Connection[Any], how: str
) -> None:
    id = enqueue(admin)
    callers = [far.as_() for _ in range(8)]
    assert all(caller.get(f"/jobs/{id}").status_code == 200 for caller in callers)
    if how == "cut":
        proxy.cut()
    else:
        proxy.pause()

    def ask(number: int) -> float:
        """From the first instant on, and while it stays away; how long the first answer took."""
        first_s = list[float]()
        caller, until_s = callers[number], time.monotonic() + 3.0
        while time.monotonic() < until_s:
            method, path = ("POST", "/jobs") if number % 2 else ("GET", f"/jobs/{id}")
            body: dict[str, Any] = {"json": {"type": "quick"}} if number % 2 else {}
            answer, took = timed(caller, method, path, **body)
            assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json"), (
                answer.text
            )
            assert answer.headers["retry-after"] == "1"
            assert took < AT_MOST_S, took
            first_s.append(took)
            health, took = timed(caller, "GET", "/healthz")
            assert (health.status_code, took < AT_MOST_S) == (200, True)
        return first_s[0]

    with ThreadPoolExecutor(8) as threads:
        took_s = list(threads.map(ask, range(8)))
    assert max(min(took_s[0::2]), min(took_s[1::2])) < WITHIN_S, took_s
    assert callers[0].get("/readyz").status_code == 503
    proxy.restore()
    until(lambda: callers[0].get("/readyz").status_code == 200)
    until(lambda: callers[0].get(f"/jobs/{id}").status_code == 200)
    assert callers[1].post("/jobs", json={"type": "quick"}).status_code == 202


def test_what_waits_when_the_database_falls_silent_is_answered_within_a_second(
    far: Served, proxy: TcpProxy, admin: psycopg.Connection[Any]
) -> None:
    """Requests whose statements are under way already, on every connection of the pool."""
    caller, answers = far.as_(), []
    caller.get("/jobs")

    def ask(_: int) -> None:
        answers.append(far.caller(token).post("/jobs", json={"type": "quick", "unique_key": f"{_}"}))

    token = str(caller.headers["authorization"]).removeprefix("Bearer ")
    with admin.transaction():
        admin.execute("lock table dispatcher.job in access exclusive mode")
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        until(lambda: _waiting(far, 8))
        proxy.pause()
        began = time.monotonic()
        for thread in threads:
            thread.join(20)
        assert time.monotonic() - began < AT_MOST_S
    assert [answer.status_code for answer in answers] == [503] * 20
    proxy.restore()
    until(lambda: caller.get("/jobs").status_code == 200)


def test_a_pulse_that_is_stopped_while_it_waits_for_a_silent_database_complains_of_nothing(
    postgres_dsn: str, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API ends while its database is away: the question that the pulse has asked fails, and somebody hears it."""
    complaints: list[dict[str, Any]] = []
    dsn = conninfo.make_conninfo(postgres_dsn, port=proxy.port)

    async def stop_amid() -> None:
        asking = asyncio.Event()

        async def ask(*args: Any, **options: Any) -> Rows:
            asking.set()
            return await ask_async(*args, **options)

        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))
        db = database.Database(dsn, connections=1)
        await db.open()
        while db.away is not None:
            await asyncio.sleep(0.01)
        await db._pool.wait()  # its connections ask, too, while they are set up
        monkeypatch.setattr(database, "ask_async", ask)
        proxy.pause()
        await asking.wait()
        await db.close()
        proxy.restore()
        if left := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(left)
        del db, left
        gc.collect()  # what nobody has heard is told when it is forgotten

    asyncio.run(stop_amid())
    assert complaints == []


def _waiting(served: Served, connections: int) -> bool:
    return len(served.app.state.api.db._busy) >= connections


def test_an_api_that_starts_before_its_database_comes_to_work(
    postgres: EmbeddedPostgres, postgres_dsn: str, admin: psycopg.Connection[Any]
) -> None:
    token_maker = Served(postgres_dsn)
    token = token_maker.token()
    token_maker.close()
    postgres.stop()
    with Served(postgres_dsn) as served:
        caller = served.caller(token)
        assert caller.get("/jobs").status_code == 503
        assert quickest(lambda: timed(caller, "GET", "/jobs")[1], within_s=WITHIN_S) < WITHIN_S
        postgres.start()
        until(lambda: caller.get("/jobs").status_code == 200)


def test_a_restarted_database_is_no_more_than_a_moment(
    far: Served, postgres: EmbeddedPostgres, admin: psycopg.Connection[Any]
) -> None:
    caller = far.as_()
    assert caller.get("/jobs").status_code == 200
    postgres.kill()
    assert caller.get("/jobs").status_code == 503
    postgres.start()
    until(lambda: caller.post("/jobs", json={"type": "quick"}).status_code == 202)


def test_a_database_without_the_schema_is_told_to_the_log_not_to_callers(
    empty_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Served(empty_dsn) as served:
        answer = served.caller("djt_" + "x" * 43).get("/jobs")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "migrate" not in answer.text
        assert "dispatcher migrate" in caplog.text


def test_connections_that_were_ended_while_nobody_used_them_fail_no_request(
    far: Served, admin: psycopg.Connection[Any]
) -> None:
    caller = far.as_()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: caller.get("/jobs"), range(32)))
    ended = admin.execute(
        "select array_agg(pid) filter (where pg_terminate_backend(pid)) from pg_stat_activity"
        " where application_name = 'dispatcher api'"
    ).fetchone()
    until(lambda: not admin.execute("select from pg_stat_activity where pid = any(%s)", ended).fetchall())
    assert [caller.get("/jobs").status_code for _ in range(10)] == [200] * 10
