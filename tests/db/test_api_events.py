"""What becomes of a job as server-sent events: in order, to the end, for many subscribers on one session."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import httpx
import pytest

from dispatcher.api import hub as hub_module
from dispatcher.api.routes import events
from dispatcher.db import Connection
from tests.db.running import enqueue, until, value
from tests.db.serving import Served


class Events:
    """The events of a stream, read in a thread of its own."""

    def __init__(self, caller: httpx.Client, id: int, last: str | None = None) -> None:
        self.got: list[tuple[str, str, dict[str, Any]]] = []
        self.comments: list[str] = []
        self.over = threading.Event()
        headers = {} if last is None else {"Last-Event-ID": last}
        self._thread = threading.Thread(target=self._read, args=(caller, id, headers), daemon=True)
        self._thread.start()

    def _read(self, caller: httpx.Client, id: int, headers: dict[str, str]) -> None:
        with caller.stream("GET", f"/jobs/{id}/events", headers=headers) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            event: dict[str, str] = {}
            for line in answer.iter_lines():
                if line.startswith(":"):
                    self.comments.append(line)
                elif line:
                    name, _, text = line.partition(": ")
                    event[name] = text
                elif "data" in event:
                    self.got.append((event["event"], event["id"], json.loads(event["data"])))
                    event = {}
        self.over.set()

    def states(self) -> list[str]:
        return [data["state"] for _, _, data in self.got]


def tell(conn: Connection, id: int, **columns: Any) -> None:
    """As a replica: the row, then the word."""
    sets = ", ".join(f"{name} = %s" for name in columns)
    with conn.transaction():
        conn.execute(f"update dispatcher.job set {sets} where id = %s".encode(), [*columns.values(), id])
        conn.execute("select pg_notify('dispatcher_events', %s)", [f"{id},999999"])


@pytest.fixture
def slow_net(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is seen comes by notification."""
    monkeypatch.setattr(hub_module, "LOOK_EVERY_S", 60.0)


@pytest.fixture
def caller(api: Served) -> httpx.Client:
    return api.as_("read")


def listening(conn: Connection) -> bool:
    return bool(
        value(conn, "select count(*) = 1 from pg_stat_activity where application_name = 'dispatcher api events'")
    )


@pytest.mark.usefixtures("slow_net")
def test_state_and_progress_come_as_they_happen_and_the_stream_ends_with_the_job(
    api: Served, conn: Connection, caller: httpx.Client
) -> None:
    id = enqueue(conn)
    until(lambda: listening(conn))
    stream = Events(caller, id)
    until(lambda: stream.states() == ["pending"])
    tell(conn, id, state="running", attempt=1, owner=1)
    until(lambda: stream.states() == ["pending", "running"])
    tell(conn, id, progress=40, progress_message="rows")
    until(lambda: len(stream.got) == 3)
    tell(conn, id, state="succeeded", result="1")
    assert stream.over.wait(10)
    assert [event for event, _, _ in stream.got] == ["state", "state", "progress", "state"]
    assert stream.got[2][2] | {"id": 0} == {
        "id": 0,
        "state": "running",
        "attempt": 1,
        "progress": 40.0,
        "progress_message": "rows",
        "cancel_requested": False,
    }
    assert stream.got[3][2]["progress"] == 100
    assert len({name for _, name, _ in stream.got}) == 4


def test_what_nobody_tells_is_found_within_a_second_or_so(api: Served, conn: Connection, caller: httpx.Client) -> None:
    id = enqueue(conn)
    stream = Events(caller, id)
    until(lambda: stream.states() == ["pending"])
    conn.execute("select dispatcher.cancel(%s)", [id])
    assert stream.over.wait(10)
    assert stream.states() == ["pending", "canceled"]


@pytest.mark.usefixtures("slow_net")
def test_a_cancel_through_this_server_is_told_at_once(api: Served, conn: Connection, caller: httpx.Client) -> None:
    id = enqueue(conn)
    stream = Events(caller, id)
    until(lambda: stream.states() == ["pending"])
    api.as_().post(f"/jobs/{id}/cancel")
    assert stream.over.wait(10)
    assert stream.states() == ["pending", "canceled"]


def test_who_comes_again_is_told_only_what_is_new(api: Served, conn: Connection, caller: httpx.Client) -> None:
    id = enqueue(conn)
    first = Events(caller, id)
    until(lambda: first.got)
    known = first.got[0][1]
    again = Events(caller, id, last=known)
    until(lambda: api.subscribers == 2)
    conn.execute("update dispatcher.job set state = 'failed', finished_at = now() where id = %s", [id])
    assert again.over.wait(10)
    assert again.states() == ["failed"]
    after = Events(caller, id, last=again.got[-1][1])
    assert after.over.wait(10), "an ended job has no more to tell"
    assert after.got == []
    unknown = Events(caller, id, last="something else")
    assert unknown.over.wait(10)
    assert unknown.states() == ["failed"]


def test_a_job_that_is_removed_ends_its_streams(api: Served, conn: Connection, caller: httpx.Client) -> None:
    id = enqueue(conn)
    stream = Events(caller, id)
    until(lambda: stream.got)
    conn.execute("delete from dispatcher.job where id = %s", [id])
    assert stream.over.wait(10)


def test_a_quiet_stream_shows_that_it_lives(
    api: Served, conn: Connection, caller: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.05)
    stream = Events(caller, enqueue(conn))
    until(lambda: len(stream.comments) > 2)


def test_replicas_are_asked_to_tell_once_somebody_listens(api: Served, conn: Connection, caller: httpx.Client) -> None:
    conn.execute("listen dispatcher_fleet")
    id = enqueue(conn)
    conn.execute("select 1")
    list(conn.notifies(timeout=0))
    stream = Events(caller, id)
    until(lambda: stream.got)
    assert "watch" in [notification.payload for notification in conn.notifies(timeout=10, stop_after=1)]


def test_streams_go_on_after_the_session_for_events_was_lost(
    api: Served, conn: Connection, caller: httpx.Client, superuser_dsn: str
) -> None:
    id = enqueue(conn)
    stream = Events(caller, id)
    until(lambda: stream.got and listening(conn))
    conn.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'dispatcher api%'"
        " and datname = current_database()"
    )
    tell(conn, id, state="running", attempt=1, owner=1)
    until(lambda: stream.states()[-1] == "running")
    until(lambda: listening(conn))
    tell(conn, id, state="succeeded")
    assert stream.over.wait(10)


def test_a_thousand_subscribers_on_one_session(api: Served, conn: Connection) -> None:
    """Of a hundred jobs; each is told the end."""
    ids = [enqueue(conn) for _ in range(100)]
    token = api.token(role="read")

    async def follow(id: int) -> list[str]:
        """A bare connection: a thousand of a client library's would be the slower side."""
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        head = f"GET /jobs/{id}/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        writer.write(f"{head}Authorization: Bearer {token}\r\n\r\n".encode())
        lines = [line async for line in reader]
        writer.close()
        await writer.wait_closed()
        assert lines[0].startswith(b"HTTP/1.1 200")
        return [json.loads(line[6:])["state"] for line in lines if line.startswith(b"data: ")]

    async def all_of_them() -> list[list[str]]:
        following = [asyncio.create_task(follow(id)) for id in ids for _ in range(10)]
        while api.subscribers < 1000:
            await asyncio.sleep(0.01)
        sessions = value(
            conn,
            "select count(*) from pg_stat_activity where datname = current_database()"
            " and application_name like 'dispatcher api%%'",
        )
        assert sessions <= 10
        await asyncio.to_thread(
            conn.execute, "update dispatcher.job set state = 'succeeded', finished_at = now(), attempt = 1"
        )
        return await asyncio.gather(*following)

    told = asyncio.run(all_of_them())
    assert len(told) == 1000
    assert {tuple(states) for states in told} <= {("pending", "succeeded"), ("succeeded",)}
    until(lambda: api.subscribers == 0)


def test_a_stop_ends_streams_and_long_polls_at_once(api: Served, conn: Connection, caller: httpx.Client) -> None:
    id = enqueue(conn)
    stream, answers = Events(caller, id), []
    waiting = threading.Thread(target=lambda: answers.append(caller.get(f"/jobs/{id}", params={"wait": "60s"})))
    waiting.start()
    until(lambda: stream.got and api.subscribers == 2)
    api.stop()
    waiting.join(10)
    assert stream.over.wait(10)
    assert answers[0].json()["state"] == "pending"
