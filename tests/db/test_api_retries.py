"""Requests that are sent again: with an Idempotency-Key nothing is done twice."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from dispatcher.db import Connection
from tests.db.running import enqueue, state, value
from tests.db.serving import Served

JOB = {"type": "quick", "payload": {"n": 1}}


def post(caller: httpx.Client, key: str, path: str = "/jobs", body: Any = JOB) -> httpx.Response:
    return caller.post(path, json=body, headers={"Idempotency-Key": key})


def jobs(conn: Connection) -> int:
    return int(value(conn, "select count(*) from dispatcher.job"))


@pytest.mark.parametrize(
    ("path", "body", "made"),
    [
        ("/jobs", JOB, 1),
        ("/jobs:batch", [JOB, JOB], 2),
        ("/batches", {"type": "quick", "payloads": [{}, {}]}, 3),
    ],
)
def test_the_first_answer_is_given_again(api: Served, conn: Connection, path: str, body: Any, made: int) -> None:
    caller = api.as_()
    first, second = post(caller, "k", path, body), post(caller, "k", path, body)
    assert (first.status_code, second.status_code) == (202, 202)
    assert (first.content, first.headers.get("location")) == (second.content, second.headers.get("location"))
    assert (first.headers.get("idempotency-replayed"), second.headers.get("idempotency-replayed")) == (None, "true")
    assert jobs(conn) == made
    assert post(caller, "other", path, body).json() != first.json()


def test_the_same_key_with_another_request_is_a_conflict(api: Served, conn: Connection) -> None:
    caller = api.as_()
    assert post(caller, "k").status_code == 202
    assert post(caller, "k", body={"type": "quick", "payload": {"n": 2}}).status_code == 409
    assert post(caller, "k", "/jobs:batch", [JOB]).status_code == 409
    assert jobs(conn) == 1


def test_keys_are_each_tenants_own(api: Served, conn: Connection) -> None:
    answers = [post(api.as_("write", tenant), "k").json()["id"] for tenant in ("a", "b", None)]
    assert len(set(answers)) == 3
    assert post(api.as_("write", "a"), "k").json()["id"] == answers[0], "another token of the tenant is as good"


def test_a_refused_request_takes_no_key(api: Served, conn: Connection) -> None:
    caller = api.as_()
    assert post(caller, "k", body={"type": "unheard_of"}).status_code == 422
    assert post(caller, "k").status_code == 202


def test_a_key_is_kept_for_a_day(api: Served, conn: Connection) -> None:
    caller = api.as_()
    first = post(caller, "k").json()["id"]
    conn.execute("update dispatcher.answer set created_at = now() - interval '23 h 59 min'")
    assert post(caller, "k").json()["id"] == first
    conn.execute("update dispatcher.answer set created_at = now() - interval '24 h 1 min'")
    second = post(caller, "k").json()["id"]
    assert second != first
    assert post(caller, "k").json()["id"] == second


def test_of_many_at_once_one_is_done(api: Served, conn: Connection) -> None:
    """The others are told to come again, or get its answer; none waits, holding a connection."""
    caller, start = api.as_(), threading.Barrier(24)

    def send(_: int) -> tuple[int, Any]:
        start.wait()
        answer = post(caller, "k")
        return answer.status_code, answer.json().get("id")

    with ThreadPoolExecutor(24) as threads:
        answers = list(threads.map(send, range(24)))
    assert jobs(conn) == 1
    assert {status for status, _ in answers} <= {202, 409}
    assert len({id for status, id in answers if status == 202}) == 1


def test_keys_in_one_group_are_each_ones_own(api: Served, conn: Connection) -> None:
    """Many callers, each with a key, some of them twice, one of them wrong: their jobs go to the database together."""
    caller, start = api.as_(), threading.Barrier(24)

    def send(number: int) -> tuple[int, Any]:
        start.wait()
        body = {"type": "unheard_of" if number == 5 else "quick", "payload": {"n": number % 12}}
        answer = post(caller, "wrong" if number == 5 else f"k{number % 12}", body=body)
        return answer.status_code, answer.json().get("id")

    with ThreadPoolExecutor(24) as threads:
        answers = list(threads.map(send, range(24)))
    assert answers[5][0] == 422
    assert jobs(conn) == 12
    for number in range(12):
        told = {id for status, id in (answers[number], answers[number + 12]) if status == 202}
        assert len(told) == 1, answers


def test_a_key_under_way_elsewhere_is_not_waited_for(api: Served, conn: Connection) -> None:
    with conn.transaction(force_rollback=True):
        conn.execute("select dispatcher.take_key('', 'k', 'x')")
        answer = post(api.as_(), "k")
    assert (answer.status_code, answer.headers["retry-after"]) == (409, "1")
    assert post(api.as_(), "k").status_code == 202


def test_cancel_and_retry_can_be_sent_again(api: Served, conn: Connection) -> None:
    caller, id = api.as_(), enqueue(conn)
    for _ in range(2):
        assert post(caller, "c", f"/jobs/{id}/cancel", None).json() == {"id": id, "state": "canceled"}
    for _ in range(2):
        assert post(caller, "r", f"/jobs/{id}/retry", None).json() == {"id": id, "state": "pending"}
    assert state(conn, id) == "pending"


@pytest.mark.parametrize("key", ["", "x" * 201, "a b"])
def test_a_key_that_is_none_is_refused(api: Served, conn: Connection, key: str) -> None:
    assert post(api.as_(), key).status_code == 422
    assert jobs(conn) == 0
