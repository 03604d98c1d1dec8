"""What one client may cost: bytes, depth, time, pending jobs. Refused before it is read, and in words."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from dispatcher.api import guard, protocol
from dispatcher.db import Connection
from tests.db.running import enqueue, publish, value
from tests.db.serving import Served


@pytest.fixture
def small(dsn: str, conn: Connection) -> Iterator[Served]:
    publish(conn)
    with Served(dsn, max_payload_bytes=1000, max_body_bytes=100_000, max_pending=10) as served:
        yield served


def talk(served: Served, *parts: bytes, ends: bool = True) -> bytes:
    """What the server answers to these bytes, until it hangs up."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as conn:
        for part in parts:
            conn.sendall(part)
        answer = b""
        while ends and (got := conn.recv(65536)):
            answer += got
        return answer


def chunks(size: int) -> Iterator[bytes]:
    """A body whose size nobody announces."""
    yield b'{"type": "quick", "payload": {"x": "'
    for _ in range(size // 1000):
        yield b"y" * 1000
    yield b'"}}'


def test_a_body_that_is_too_large_is_refused_whether_it_says_so_or_not(small: Served, conn: Connection) -> None:
    caller = small.as_()
    announced = caller.post("/jobs", content=b"".join(chunks(30_000)), headers={"Content-Type": "application/json"})
    streamed = caller.post("/jobs", content=chunks(30_000), headers={"Content-Type": "application/json"})
    many = caller.post("/jobs:batch", content=chunks(200_000), headers={"Content-Type": "application/json"})
    for answer in (announced, streamed, many):
        assert (answer.status_code, answer.headers["content-type"]) == (413, "application/problem+json")
        assert "bytes" in answer.json()["detail"]
    assert value(conn, "select count(*) from dispatcher.job") == 0


def test_who_is_refused_while_it_sends_sees_why(small: Served) -> None:
    """A connection that is closed on it would show it a reset."""
    token = small.token()

    async def send() -> list[int]:
        async with httpx.AsyncClient(base_url=small.url, headers={"Authorization": f"Bearer {token}"}) as client:
            return [(await client.post("/jobs", content=b"x" * 6_000_000)).status_code for _ in range(5)]

    assert asyncio.run(send()) == [413] * 5


def test_a_body_is_not_read_past_its_bound(small: Served) -> None:
    """A client that goes on sending is hung up on."""
    head = b"POST /jobs HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    answer = talk(small, head % 10**12)
    assert answer.startswith(b"HTTP/1.1 413")


def test_a_payload_over_the_types_limit_is_a_413(api: Served, conn: Connection) -> None:
    publish(conn, max_payload_bytes=1000)
    answer = api.as_().post("/jobs", json={"type": "quick", "payload": {"x": "y" * 1000}})
    assert (answer.status_code, answer.json()["type"]) == (413, "urn:dispatcher:PayloadTooLarge")


def nested(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {}
    for level in range(depth - 1):
        inner = {"x": [inner]} if level % 2 else {"x": inner}
    return inner


def test_a_payload_may_be_nested_a_hundred_levels_deep_and_no_more(api: Served, conn: Connection) -> None:
    caller = api.as_()
    assert caller.post("/jobs", json={"type": "quick", "payload": nested(60)}).status_code == 202
    deep = caller.post("/jobs", json={"type": "quick", "payload": nested(120)})
    assert (deep.status_code, "deep" in deep.json()["detail"]) == (422, True)
    for text in ("[" * 50_000 + "]" * 50_000, '{"x":' * 50_000 + "1" + "}" * 50_000):
        body = f'{{"type": "quick", "payload": {{"x": {text}}}}}'
        answer = caller.post("/jobs", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 422)
        many = caller.post("/jobs:batch", content=f"[{body}]", headers={"Content-Type": "application/json"})
        assert many.status_code in (400, 422)


def test_a_head_that_is_too_large_is_refused(api: Served) -> None:
    over = protocol.HEAD_BYTES
    for request in (
        b"GET /jobs HTTP/1.1\r\nHost: x\r\nX: %s\r\n\r\n" % (b"y" * over),
        b"GET /jobs?%s HTTP/1.1\r\nHost: x\r\n\r\n" % (b"y" * over),
        b"GET /jobs HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * over,
    ):
        assert talk(api, request).startswith(b"HTTP/1.1 431")
    with socket.create_connection(("127.0.0.1", api.port), timeout=20) as conn:  # a head that never ends
        conn.sendall(b"GET /jobs HTTP/1.1\r\nX: ")
        try:
            for _ in range(1000):
                conn.sendall(b"y" * 1000)
            answer = conn.recv(65536)
        except OSError:  # hung up on while it was sending
            answer = b"HTTP/1.1 431"
        assert answer.startswith(b"HTTP/1.1 431")


def test_who_is_slow_to_ask_is_hung_up_on(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_S", 0.1)
    assert talk(api) == b""
    assert talk(api, b"GET /jobs HTTP/1.1\r\nHost:") == b""
    assert talk(api, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /hea").startswith(b"HTTP/1.1 200")


def test_a_body_that_does_not_arrive_is_given_up(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_S", 0.1)
    token = api.token().encode()
    head = b"POST /jobs HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 9\r\n"
    head += b"Authorization: Bearer %s\r\n\r\n"
    assert talk(api, head % token, b"{").startswith(b"HTTP/1.1 408")


def test_a_request_that_takes_too_long_ends(api: Served, conn: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = api.as_()
    caller.get("/jobs")
    monkeypatch.setattr(guard, "REQUEST_S", 0.2)
    with conn.transaction():
        conn.execute("lock table dispatcher.job in access exclusive mode")
        answer = caller.get("/jobs")
    assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
    assert caller.get("/jobs").status_code == 200


def test_a_tenant_whose_jobs_pile_up_has_to_wait(small: Served, conn: Connection) -> None:
    caller = small.as_("write", "acme")
    statuses = [caller.post("/jobs", json={"type": "quick"}).status_code for _ in range(12)]
    assert statuses == [202] * 10 + [429] * 2
    refused = caller.post("/jobs:batch", json=[{"type": "quick"}])
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert caller.post("/batches", json={"type": "quick", "payloads": [{}]}).status_code == 429
    assert small.as_("write", "other").post("/jobs", json={"type": "quick"}).status_code == 202
    everything = small.as_("write")
    assert everything.post("/jobs", json={"type": "quick"}).status_code == 202
    assert everything.post("/jobs:batch", json=[{"type": "quick"}] * 11).status_code == 429
    assert value(conn, "select count(*) from dispatcher.job where tenant = 'acme'") == 10


def test_room_is_seen_once_jobs_are_gone(small: Served, conn: Connection) -> None:
    caller, gone = small.as_("write", "acme"), threading.Event()
    for _ in range(10):
        enqueue(conn, tenant="acme")
    assert caller.post("/jobs", json={"type": "quick"}).status_code == 429
    conn.execute("delete from dispatcher.job")
    while (answer := caller.post("/jobs", json={"type": "quick"})).status_code == 429:
        gone.wait(float(answer.headers["retry-after"]) / 10)
    assert answer.status_code == 202


def test_a_crowd_of_unknown_tokens_is_remembered_in_bounded_room(api: Served, conn: Connection) -> None:
    from dispatcher.api import tokens  # noqa: PLC0415

    caller = api.caller()
    for number in range(50):
        header = {"Authorization": f"Bearer djt_{number:043d}"}
        assert caller.get("/jobs", headers=header).status_code == 401
    assert len(api.app.state.api.tokens._found) <= tokens.KEPT
    assert json.loads(caller.get("/healthz").text) == {"status": "ok"}
