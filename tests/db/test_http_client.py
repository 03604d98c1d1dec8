"""dispatcher.http: the same answers and the same errors as those of the database client, and nothing done twice."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

import dispatcher
from dispatcher import http
from dispatcher.embedded import EmbeddedPostgres
from dispatcher.errors import (
    AccessDenied,
    ApiUnavailable,
    DatabaseUnavailable,
    InvalidOption,
    JobNotFound,
    SettingsError,
    TooManyJobs,
)
from dispatcher.http.delivery import Delivery
from tests import servers
from tests.db.front_door import count, end, publish
from tests.db.front_story import tell, timeless
from tests.db.http_clients import Blocking
from tests.db.running import open_transaction, until
from tests.db.serving import Served
from tests.proxy import TcpProxy

Connection = psycopg.Connection[Any]
ABSENT = {
    "ask_to_resign", "batch_lines", "count_ended", "create_token", "enqueue_lines", "enqueue_text",
    "enqueue_unique_lines", "predecessors", "purge", "retry_where", "revoke_token", "tokens",
}  # fmt: skip


@pytest.fixture
def other_dsn(server: EmbeddedPostgres) -> Iterator[str]:
    """A second database like that of `dsn`."""
    name = servers.add_database(server, template=servers.MIGRATED)
    yield servers.role_dsn(server, name)
    servers.drop_database(server, name)


@pytest.fixture
def served(dsn: str, conn: Connection) -> Iterator[Served]:
    publish(conn)
    with Served(dsn) as served:
        yield served


@pytest.fixture
def token(served: Served) -> str:
    return served.token(role="admin")


@pytest.fixture(params=[http.Client, Blocking], ids=["blocking", "async"])
def client(request: pytest.FixtureRequest, served: Served, token: str) -> Iterator[Any]:
    with request.param(served.url, token) as client:
        yield client


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses, where the server does not ask for longer ones."""
    monkeypatch.setattr("dispatcher.http.delivery.FIRST_PAUSE_S", 0.01)


def test_the_same_story_through_any_client(client: Any, conn: Connection, other_dsn: str) -> None:
    with dispatcher.Client(other_dsn) as model, psycopg.connect(other_dsn, autocommit=True) as other_conn:
        expected = tell(model, other_conn)
    told = tell(client, conn)
    assert [name for name, _ in told] == [name for name, _ in expected]
    different = [
        f"{name}: {timeless(ours)}\n  not {timeless(theirs)}"
        for (name, ours), (_, theirs) in zip(told, expected, strict=True)
        if timeless(ours) != timeless(theirs)
    ]
    assert not different, "\n".join(different)


def test_methods_and_parameters_are_those_of_the_database_clients() -> None:
    def methods(kind: type) -> dict[str, list[str]]:
        public = {name: value for name, value in inspect.getmembers(kind, callable) if not name.startswith("_")}
        return {
            name: [one for one in inspect.signature(value).parameters if one != "conn"]
            for name, value in public.items()
        }

    model = {name: given for name, given in methods(dispatcher.Client).items() if name not in ABSENT}
    assert methods(http.Client) == {**model, "events": ["self", "id"]}
    assert methods(http.AsyncClient) == methods(http.Client)


def test_times_are_aware_and_exact(client: Any) -> None:
    soon = datetime(2100, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)
    job = client.get(client.enqueue("any", run_at=soon))
    assert job.run_at == soon
    assert job.created_at.utcoffset() is not None


def test_name_with_a_slash_is_one_name(client: Any, dsn: str) -> None:
    with dispatcher.Client(dsn) as model:
        model.add_schedule("reports/../nightly", "0 3 * * *", "any")
        assert client.pause_schedule("reports/../nightly")
        assert not model.pause_schedule("reports/../nightly")
        client.remove_schedule("reports/../nightly")
        assert model.schedules() == []


def test_stored_result_is_read(client: Any, conn: Connection, tmp_path: Path) -> None:
    stored = tmp_path / "result.json"
    stored.write_text(json.dumps({"rows": [1, 2]}))
    id = client.enqueue("any")
    end(conn, id, "succeeded")
    conn.execute("update dispatcher.job set result = null, result_url = %s where id = %s", (stored.as_uri(), id))
    assert client.result(id) == {"rows": [1, 2]}


def test_wait_ends_with_the_job(client: Any, served: Served, token: str) -> None:
    ids = client.enqueue_many("any", [{}, {}])
    with ThreadPoolExecutor() as threads, http.Client(served.url, token) as other:
        waiting = threads.submit(client.wait, ids, 20)
        for id in ids:
            other.cancel(id)
        assert [(job.id, job.state) for job in waiting.result(10)] == [(id, "canceled") for id in ids]


def test_too_many_at_once_are_refused_before_they_are_sent(client: Any, conn: Connection) -> None:
    with pytest.raises(InvalidOption, match="up to 10000 jobs at once; these are 10001"):
        client.enqueue_many("any", [{}] * 10_001)
    assert len(client.enqueue_many("any", [{}] * 10_000)) == count(conn) == 10_000
    assert len(client.list(limit=1_200)) == 1_200


class Spy:
    """What the server answered, to each try."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.statuses: list[int] = []
        self.lost = 0
        judge, lose = Delivery.judge, Delivery.lost

        def spied(delivery: Delivery, answer: Any) -> Any:
            self.statuses.append(answer.status)
            return judge(delivery, answer)

        def counted(delivery: Delivery, exc: Any) -> Exception:
            self.lost += 1
            return lose(delivery, exc)

        monkeypatch.setattr(Delivery, "judge", spied)
        monkeypatch.setattr(Delivery, "lost", counted)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    return Spy(monkeypatch)


@pytest.fixture
def proxy(served: Served) -> Iterator[TcpProxy]:
    with TcpProxy("127.0.0.1", served.port) as proxy:
        yield proxy


@pytest.fixture(params=[http.Client, Blocking], ids=["blocking", "async"])
def distant(request: pytest.FixtureRequest, proxy: TcpProxy, token: str) -> Iterator[Any]:
    """A client behind the proxy."""
    with request.param(f"http://127.0.0.1:{proxy.port}", token) as client:
        yield client


def unanswered(proxy: TcpProxy, act: Callable[[], Any], committed: Callable[[], bool]) -> Any:
    """Does something, whose first answer is lost after the server has committed."""
    with ThreadPoolExecutor() as threads:
        proxy.pause(to_server=False)
        acting = threads.submit(act)
        until(committed)
        proxy.drop()
        proxy.restore()
        return acting.result(20)


def test_nothing_is_enqueued_twice_where_the_answer_is_lost(
    distant: Any, proxy: TcpProxy, conn: Connection, spy: Spy
) -> None:
    def holds(jobs: int) -> Callable[[], bool]:
        return lambda: count(conn) == jobs

    id = unanswered(proxy, lambda: distant.enqueue("any"), holds(1))
    assert spy.lost >= 1
    assert spy.statuses[-1] == 202
    assert distant.get(id).id == id
    ids = unanswered(proxy, lambda: distant.enqueue_many("any", [{}, {}]), holds(3))
    assert [distant.get(one).id for one in ids] == ids
    batch = unanswered(proxy, lambda: distant.batch("any", [{}, {}]), holds(6))
    assert distant.get_batch(batch).total == 2
    again = unanswered(proxy, lambda: distant.enqueue_unique("any", unique_key="k"), holds(7))
    assert again[1], "it is a new job, whichever try made it"
    distant.add_schedule("s", "0 3 * * *", "any")
    triggered = unanswered(proxy, lambda: distant.trigger_schedule("s"), holds(8))
    assert distant.get(triggered).id == triggered
    gone = lambda: not conn.execute("select from dispatcher.schedule").fetchall()  # noqa: E731
    assert unanswered(proxy, lambda: distant.remove_schedule("s"), gone) is None
    assert count(conn) == 8


def test_two_calls_alike_are_two_jobs(client: Any) -> None:
    assert client.enqueue("any") != client.enqueue("any")


def test_try_that_meets_the_first_one_under_way_waits_for_it(
    distant: Any, proxy: TcpProxy, dsn: str, conn: Connection, spy: Spy
) -> None:
    with (
        ThreadPoolExecutor() as threads,
        open_transaction(dsn, "lock table dispatcher.job in share row exclusive mode") as locked,
    ):
        enqueueing = threads.submit(distant.enqueue, "any")
        blocked = "select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        until(lambda: conn.execute(blocked).fetchall())
        proxy.drop()
        until(lambda: 409 in spy.statuses)
        locked.rollback()
        id = enqueueing.result(20)
    assert distant.get(id).id == id
    assert count(conn) == 1


def test_without_retries_a_lost_answer_is_told(proxy: TcpProxy, token: str, conn: Connection) -> None:
    with http.Client(f"http://127.0.0.1:{proxy.port}", token, retries=0) as client, pytest.raises(ApiUnavailable):
        unanswered(proxy, lambda: client.enqueue("any"), lambda: count(conn) == 1)


def test_server_that_is_away_for_a_moment_is_waited_for(
    distant: Any, proxy: TcpProxy, spy: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dispatcher.http.delivery.FIRST_PAUSE_S", 0.1)
    id = distant.enqueue("any")
    proxy.cut()
    with ThreadPoolExecutor() as threads:
        getting = threads.submit(distant.get, id)
        until(lambda: spy.lost)
        proxy.restore()
        assert getting.result(20).id == id


def test_nobody_answers(token: str, proxy: TcpProxy) -> None:
    proxy.cut()
    with http.Client(f"http://127.0.0.1:{proxy.port}", token, retries=1) as client:
        with pytest.raises(DatabaseUnavailable, match=r"cannot reach the HTTP API at http://127\.0\.0\.1") as told:
            client.enqueue("any")
        assert isinstance(told.value, ApiUnavailable)


def test_something_else_answers(served: Served, token: str) -> None:
    with http.Client(f"{served.url}/elsewhere", token) as client:
        for call in (
            client.types,
            client.leader,
            lambda: client.get(1),
            lambda: client.pause("any"),
            lambda: next(client.events(1)),
        ):
            with pytest.raises(ApiUnavailable, match="no such path: is the url right"):
                call()


def test_events_until_the_end_over_a_lost_connection(distant: Any, proxy: TcpProxy, client: Any) -> None:
    id = client.enqueue("any")
    events = distant.events(id)
    name, data = next(events)
    assert (name, data["id"], data["state"]) == ("state", id, "pending")
    proxy.drop()
    client.cancel(id)
    rest = list(events)
    assert [(name, data["state"]) for name, data in rest] == [("state", "canceled")]
    assert [data["state"] for _, data in distant.events(id)] == ["canceled"]


def test_events_of_no_job(client: Any) -> None:
    with pytest.raises(JobNotFound):
        next(iter(client.events(10**12)))


def test_events_may_be_left_early(served: Served, token: str) -> None:
    async def leave(id: int) -> None:
        async with http.AsyncClient(served.url, token) as client, contextlib.aclosing(client.events(id)) as events:
            await anext(events)

    with http.Client(served.url, token) as client:
        id = client.enqueue("any")
        for _ in client.events(id):
            break
        asyncio.run(leave(id))
        until(lambda: served.subscribers == 0)
        assert client.get(id).state == "pending"


def test_many_wait_at_once_over_one_client(served: Served, token: str) -> None:
    async def wait_for_all() -> list[Any]:
        async with http.AsyncClient(served.url, token) as client:
            ids = await client.enqueue_many("any", [{}] * 150)
            waits = [asyncio.create_task(client.wait(id, timeout=30)) for id in ids]
            while served.subscribers < len(ids):
                await asyncio.sleep(0.01)
            for id in ids:
                await client.cancel(id)
            return [job.state for job in await asyncio.gather(*waits)]

    assert set(asyncio.run(wait_for_all())) == {"canceled"}


def test_client_may_be_closed_and_used_again(client: Any) -> None:
    id = client.enqueue("any")
    client.close()
    assert client.get(id).id == id


def test_what_a_token_may_not_do(served: Served) -> None:
    def refused(token: str, act: Callable[[http.Client], Any], told: str) -> None:
        with http.Client(served.url, token) as client, pytest.raises(AccessDenied, match=told):
            act(client)

    refused("djt_" + "x" * 43, lambda client: client.types(), "no such token")
    refused("nonsense", lambda client: client.get(1), "no token of the dispatcher's")
    refused("nonsense", lambda client: next(client.events(1)), "no token of the dispatcher's")
    refused(served.token(role="read"), lambda client: client.enqueue("any"), "needs the role write")
    refused(served.token(tenant="acme"), lambda client: client.replicas(), "concerns all tenants")


def test_too_many_jobs_wait(dsn: str, conn: Connection) -> None:
    publish(conn)
    with (
        Served(dsn, max_pending=1) as served,
        http.Client(served.url, served.token(), retries=0) as client,
        pytest.raises(TooManyJobs, match="no room for 2 more"),
    ):
        client.enqueue_many("any", [{}, {}])


def test_token_is_told_nobody(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    token = served.token(role="read")
    with http.Client(served.url, token, retries=0) as client:
        shown = repr(client) + repr(client._address)
        for act in (lambda: client.enqueue("any"), lambda: client.get(1)):
            with pytest.raises(dispatcher.DispatcherError) as told:
                act()
            shown += "".join(traceback.format_exception(told.value))
    with http.Client("http://127.0.0.1:1", token, retries=0) as client, pytest.raises(ApiUnavailable) as told:
        client.types()
    shown += "".join(traceback.format_exception(told.value))
    with pytest.raises(SettingsError) as refused:
        http.Client("http://127.0.0.1:1", token + "\n" + token)
    assert token not in shown + str(refused.value) + caplog.text


def test_environment_says_where_and_who(served: Served, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="DISPATCHER_API_URL"):
        http.Client()
    monkeypatch.setenv("DISPATCHER_API_URL", served.url + "/")
    with pytest.raises(SettingsError, match="DISPATCHER_API_TOKEN"):
        http.Client()
    monkeypatch.setenv("DISPATCHER_API_TOKEN", token + "\n")
    with http.Client() as client:
        assert client.types()


@pytest.mark.parametrize(
    "url", ["jobs.example.com", "ftp://x", "http://", "http://a:b@c", "http://x?y", "http://x:nine"]
)
def test_url_that_is_none(url: str) -> None:
    with pytest.raises(SettingsError, match="the url of the HTTP API") as told:
        http.Client(url, "djt_x")
    assert "a:b" not in str(told.value)
