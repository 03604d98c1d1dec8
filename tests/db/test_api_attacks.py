"""What somebody hostile would try: each of these once went through."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from psycopg import conninfo

from dispatcher import Client
from dispatcher.api import protocol, server
from dispatcher.api.routes import events
from dispatcher.db import Connection
from dispatcher.queries import listing, serving
from tests.db.running import enqueue, publish, until, value
from tests.db.serving import Served
from tests.proxy import TcpProxy
from tests.timing import quickest


@pytest.fixture
def small(dsn: str, conn: Connection) -> Iterator[Served]:
    publish(conn)
    with Served(dsn, max_pending=10) as served:
        yield served


def test_a_parent_is_no_way_around_the_bound_of_a_tenant(small: Served, conn: Connection) -> None:
    caller = small.as_("write", "acme")
    batch = caller.post("/batches", json={"type": "quick", "payloads": [{}]}).json()["id"]
    statuses = [caller.post("/jobs", json={"type": "quick", "parent": batch}).status_code for _ in range(12)]
    assert statuses == [202] * 9 + [429] * 3


def test_a_tenant_takes_no_room_from_jobs_without_one(small: Served, conn: Connection) -> None:
    caller = small.as_("write", "acme")
    for _ in range(20):
        caller.post("/jobs", json={"type": "quick", "parent": 4711})
    assert small.as_("write").post("/jobs", json={"type": "quick"}).status_code == 202


def test_the_first_answer_comes_again_though_there_is_no_more_room(small: Served, conn: Connection) -> None:
    caller = small.as_("write", "acme")
    asked: dict[str, Any] = {
        "/jobs": {"type": "quick"},
        "/jobs:batch": [{"type": "quick"}] * 8,
        "/batches": {"type": "quick", "payloads": [{}]},
    }
    for path, body in asked.items():
        assert caller.post(path, json=body, headers={"Idempotency-Key": path}).status_code == 202
    for path, body in asked.items():
        again = caller.post(path, json=body, headers={"Idempotency-Key": path})
        assert (again.status_code, again.headers.get("idempotency-replayed")) == (202, "true"), path
    assert caller.post("/jobs", json={"type": "slow"}, headers={"Idempotency-Key": "/jobs"}).status_code == 409
    assert caller.post("/jobs", json={"type": "quick"}, headers={"Idempotency-Key": "new"}).status_code == 429


def test_the_first_answer_comes_again_though_its_jobs_are_gone(api: Served, conn: Connection) -> None:
    caller = api.as_("write", "acme")
    before = enqueue(conn, tenant="acme")
    body = {"type": "quick", "after": [before]}
    first = caller.post("/jobs", json=body, headers={"Idempotency-Key": "k"})
    cancel = caller.post(f"/jobs/{before}/cancel", headers={"Idempotency-Key": "c"})
    assert (first.status_code, cancel.status_code) == (202, 200)
    conn.execute("delete from dispatcher.dependency")
    conn.execute("delete from dispatcher.job where id = %s", [before])
    again = caller.post("/jobs", json=body, headers={"Idempotency-Key": "k"})
    assert (again.status_code, again.text) == (202, first.text)
    assert caller.post(f"/jobs/{before}/cancel", headers={"Idempotency-Key": "c"}).text == cancel.text


def test_keys_of_tenants_do_not_meet_however_they_are_written(api: Served, conn: Connection) -> None:
    caller = api.as_("write", "a:b")
    with conn.transaction():
        conn.execute("select dispatcher.take_key('a', 'b:c', '')")
        answer = caller.post("/jobs", json={"type": "quick"}, headers={"Idempotency-Key": "c"})
    assert answer.status_code == 202, answer.text


def test_a_stream_ends_when_its_token_is_void(api: Served, conn: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_S", 0.2)
    id = enqueue(conn)
    with Client(api.dsn) as client:
        number, token = client.create_token("leaver")
        with api.caller(token).stream("GET", f"/jobs/{id}/events", timeout=5.0) as stream:
            lines = stream.iter_lines()
            next(line for line in lines if line.startswith("data"))
            client.revoke_token(number)
            began = time.monotonic()
            for _ in lines:
                assert time.monotonic() - began < 4.0


def test_a_long_poll_shows_nothing_to_a_token_that_became_void(api: Served, conn: Connection) -> None:
    id = enqueue(conn)
    with Client(api.dsn) as client, ThreadPoolExecutor(1) as threads:
        number, token = client.create_token("leaver")
        caller = api.caller(token)
        poll = threads.submit(caller.get, f"/jobs/{id}", params={"wait": "20s"})
        until(lambda: api.subscribers == 1)
        client.revoke_token(number)
        time.sleep(1.2)
        conn.execute("update dispatcher.job set state = 'canceled' where id = %s", [id])
        assert poll.result(20).status_code == 401


def closed(conn: socket.socket, within_s: float) -> bool:
    conn.settimeout(within_s)
    try:
        while conn.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


@pytest.fixture
def hasty(dsn: str, conn: Connection, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    publish(conn)
    monkeypatch.setattr(server, "KEEP_ALIVE_S", 1)
    monkeypatch.setattr(protocol, "HEAD_S", 0.5)
    with Served(dsn) as served:
        yield served


@pytest.mark.parametrize(
    ("request_", "drip"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"\r\n"),
        (b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n", b"x"),
    ],
)
def test_a_connection_that_asks_nothing_more_is_hung_up_on(hasty: Served, request_: bytes, drip: bytes) -> None:
    with socket.create_connection(("127.0.0.1", hasty.port)) as conn:
        conn.sendall(request_)
        assert conn.recv(65536)
        conn.sendall(drip)
        assert closed(conn, 5.0)


def test_what_follows_a_body_is_bounded(api: Served) -> None:
    with socket.create_connection(("127.0.0.1", api.port)) as conn:
        conn.sendall(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
        conn.settimeout(5.0)
        sent = 0
        try:
            for _ in range(2000):
                conn.sendall(b"X: " + b"y" * 8000 + b"\r\n")
                sent += 8000
        except OSError:
            pass
    assert sent < 4_000_000


def test_a_large_body_is_not_read_for_who_has_no_token(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    loads, seen = json.loads, [0]

    def noted(text: Any, **more: Any) -> Any:
        seen.append(len(text))
        return loads(text, **more)

    monkeypatch.setattr(json, "loads", noted)
    body = b'{"type": "quick", "payloads": [{"x": [' + b"[]," * 300_000 + b"1]}]}"
    answer = api.caller().post("/batches", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 401
    assert max(seen) < 100_000


@pytest.mark.parametrize("host", [b"[", b"x]["])
def test_a_host_that_is_none_is_no_crash(api: Served, conn: Connection, host: bytes) -> None:
    token = api.token().encode()
    for head in (b"POST /healthz", b"POST /jobs", b"GET /jobs?limit=1"):
        enqueue(conn)
        enqueue(conn)
        body = b'{"type": "quick"}' if head == b"POST /jobs" else b""
        more = b"Connection: close\r\nIdempotency-Key: k\r\nContent-Type: application/json\r\n"
        more += b"Content-Length: %d\r\nAuthorization: Bearer %s\r\n\r\n%s" % (len(body), token, body)
        with socket.create_connection(("127.0.0.1", api.port)) as asking:
            asking.sendall(b"%s HTTP/1.1\r\nHost: %s\r\n%s" % (head, host, more))
            answer = b""
            while got := asking.recv(65536):
                answer += got
        assert not answer.startswith(b"HTTP/1.1 500"), (head, answer)


def test_a_pulse_that_is_ended_alone_is_no_outage(api: Served, conn: Connection) -> None:
    caller = api.as_()
    caller.get("/jobs")
    with ThreadPoolExecutor(1) as threads:
        with conn.transaction():
            conn.execute("lock table dispatcher.job in access exclusive mode")
            slow = threads.submit(caller.get, "/jobs")
            until(lambda: len(api.app.state.api.db._busy) == 1)
            end = "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = %s"
            assert value(conn, end, "dispatcher api pulse") == 1
            time.sleep(1.0)
        assert slow.result(20).status_code == 200


def test_who_hangs_up_waits_no_more(api: Served, conn: Connection) -> None:
    id = enqueue(conn)
    token = api.token().encode()
    with socket.create_connection(("127.0.0.1", api.port)) as poll:
        poll.sendall(b"GET /jobs/%d?wait=60s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n" % (id, token))
        until(lambda: api.subscribers == 1)
    until(lambda: api.subscribers == 0, within_s=5.0)


def test_slow_statements_are_no_outage_for_what_needs_others(api: Served, conn: Connection) -> None:
    caller, everybody = api.as_("write", "acme"), api.as_("read")
    caller.get("/jobs")
    everybody.get("/replicas")
    with ThreadPoolExecutor(10) as threads:
        with conn.transaction():
            conn.execute("lock table dispatcher.job in access exclusive mode")
            slow = [
                threads.submit(caller.post, "/jobs", json={"type": "quick", "unique_key": f"{number}"})
                for number in range(10)
            ]
            until(lambda: len(api.app.state.api.db._busy) == 8)
            time.sleep(1.5)
        assert [one.result(20).status_code for one in slow] == [202] * 10


def test_how_long_an_answer_takes_does_not_tell_whether_there_is_a_job(api: Served, conn: Connection) -> None:
    theirs = enqueue(conn, tenant="acme")
    conn.execute(
        "update dispatcher.job set payload = jsonb_build_object('x', (select string_agg(md5(n::text), '')"
        " from generate_series(1, 100000) n)) where id = %s",
        [theirs],
    )
    caller = api.as_("read", "other")

    def least(id: int) -> float:
        took = []
        for _ in range(20):
            began = time.monotonic()
            assert caller.get(f"/jobs/{id}").status_code == 404
            took.append(time.monotonic() - began)
        return min(took)

    def ratio() -> float:
        return least(theirs) / least(4711)

    least(4711)
    assert quickest(ratio, within_s=5.0) < 5.0  # it was 24 times as long


def test_no_connection_from_before_an_outage_is_used_after_it(postgres_dsn: str) -> None:
    port = int(str(conninfo.conninfo_to_dict(postgres_dsn)["port"]))
    with (
        TcpProxy("127.0.0.1", port) as proxy,
        Served(conninfo.make_conninfo(postgres_dsn, port=proxy.port)) as far,
    ):
        caller = far.as_()
        until(lambda: caller.get("/jobs").status_code == 200)
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda _: caller.get("/schedules"), range(64)))
        proxy.cut()
        until(lambda: caller.get("/readyz").status_code == 503)
        proxy.restore()
        until(lambda: caller.get("/readyz").status_code == 200)
        assert [caller.get("/schedules").status_code for _ in range(10)] == [200] * 10


def test_batches_that_lock_each_other_out_are_both_done(api: Served, conn: Connection) -> None:
    """Jobs with other options are other statements, and their unique keys come in another order."""
    token = api.token()

    def send(order: list[int]) -> list[int]:
        caller, statuses = api.caller(token), []
        for number in range(5):
            body = [{"type": "quick", "unique_key": f"{number}-{each}", "priority": each} for each in order]
            statuses.append(caller.post("/jobs:batch", json=body).status_code)
        return statuses

    with ThreadPoolExecutor(2) as threads:
        order = list(range(200))
        assert list(threads.map(send, (order, order[::-1]))) == [[202] * 5] * 2
    assert value(conn, "select count(*) from dispatcher.job") == 5 * 200


@pytest.mark.parametrize("delay", ["1h", None])
def test_the_counts_of_a_tenant_do_not_depend_on_others(
    api: Served, conn: Connection, monkeypatch: pytest.MonkeyPatch, delay: str | None
) -> None:
    monkeypatch.setattr(serving, "COUNTED", 5)
    own = api.as_("write", "other")
    id = own.post("/jobs", json={"type": "quick", "delay": "2h"}).json()["id"]
    if delay is None:
        own.post(f"/jobs/{id}/cancel")
    before = own.get("/types/quick").json()["counts"]
    for _ in range(10):
        theirs = enqueue(conn, tenant="acme", delay="1h")
        if delay is None:
            conn.execute("select dispatcher.cancel(%s)", [theirs])
    assert own.get("/types/quick").json()["counts"] == before


def test_a_page_of_large_jobs_is_short(api: Served, conn: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 of a megabyte each would be more than this process should hold; none is left out on the way."""
    monkeypatch.setattr(listing, "PAGE_CHARS", 200_000)
    ids = [enqueue(conn, payload={"x": "y" * 20_000 if n % 2 else ""}) for n in range(70)]
    caller, seen = api.as_("read"), list[int]()
    cursor: dict[str, str] = {}
    while True:
        answer = caller.get("/jobs", params={"limit": 500, **cursor})
        assert len(answer.content) < 600_000
        seen += [one["id"] for one in answer.json()["jobs"]]
        if (following := answer.json()["next"]) is None:
            break
        cursor = {"cursor": following}
    assert seen == ids[::-1]
