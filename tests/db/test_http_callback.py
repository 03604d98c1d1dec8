"""Answers that come later: never lost, never counted twice, and by the token alone."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from dispatcher_executors.http_request import http_request

from dispatcher import Client
from dispatcher.db import Connection
from dispatcher.testing import Queue
from tests.db.running import job, state, until, value
from tests.db.serving import Served
from tests.system.replicas import Fleet
from tests.web import Asked, Reply, Site, serve

DONE = {"status": "succeeded", "result": {"pages": 12}}


class Worker:
    """Whoever works behind the URL: answers by `reply`, and calls back when a test says so, or before it replies."""

    def __init__(self) -> None:
        self.reply = Reply(202)
        self.at_once: Any = None
        self.asked: list[Asked] = []
        self.came = threading.Event()
        self.said: list[httpx.Response] = []
        self.hold: threading.Event | None = None

    def __call__(self, asked: Asked) -> Reply:
        self.asked.append(asked)
        if self.at_once is not None:
            self.call_back(self.at_once)
        self.came.set()
        if self.hold is not None:
            self.hold.wait(30)
        return self.reply

    def call_back(self, answer: Any, *, token: str | None = None, number: int = -1) -> httpx.Response:
        """With the token of the latest request, or another one."""
        headers = self.asked[number].headers
        token = token if token is not None else headers["dispatcher-callback-token"]
        said = httpx.post(
            headers["dispatcher-callback-url"], json=answer, headers={"Authorization": f"Bearer {token}"}, timeout=30
        )
        self.said.append(said)
        return said


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def site(worker: Worker, api: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with serve(worker) as site:
        monkeypatch.setenv("DISPATCHER_HTTP_HOSTS", site.url)
        monkeypatch.setenv("DISPATCHER_CALLBACK_URL", api.url + "/")
        yield site


@pytest.fixture
def queue(dsn: str, site: Site) -> Iterator[Queue]:
    with Queue(dsn, [http_request]) as queue:
        yield queue


@pytest.fixture
def add(queue: Queue, site: Site) -> Callable[..., int]:
    return lambda deadline="1h", **options: queue.enqueue("http_request", payload(site, deadline), **options)


def payload(site: Site, deadline: str | float = "1h") -> dict[str, Any]:
    return {"url": site.url, "method": "POST", "body": {"json": {"n": 1}}, "callback": {"deadline": deadline}}


def errors(conn: Connection, id: int) -> list[str]:
    return [error["message"] for error in job(conn, id)["errors"] or []]


def test_leader_ends_the_job_at_once_when_the_answer_comes(
    dsn: str, api: Served, site: Site, worker: Worker, conn: Connection, tmp_path: Path
) -> None:
    settings = {"http_hosts": site.url, "callback_url": api.url, "executors": "dispatcher_executors.http_request"}
    with Fleet(dsn, tmp_path) as fleet:
        fleet.start_leader(**settings)
        with Client(dsn) as client:
            id = client.enqueue("http_request", payload(site))
        assert worker.came.wait(30)
        until(lambda: state(conn, id) == "scheduled")
        assert value(conn, "select run_at > now() + interval '50 s' from dispatcher.job where id = %s", id)
        said = worker.call_back(DONE)
        assert (said.status_code, said.json()) == (200, {"id": id, "state": "pending"})
        until(lambda: state(conn, id) == "succeeded")  # long before its next look
    assert (job(conn, id)["result"], len(worker.asked)) == ({"pages": 12}, 1)


def test_answer_before_the_202_was_read_is_not_lost(
    queue: Queue, worker: Worker, conn: Connection, add: Callable[..., int]
) -> None:
    worker.at_once = DONE
    id = add()
    queue.drain()
    assert worker.said[0].json() == {"id": id, "state": "running"}
    assert (job(conn, id)["state"], job(conn, id)["result"], len(worker.asked)) == ("succeeded", {"pages": 12}, 1)


def test_answer_starts_no_job_that_may_still_run_in_a_replica_that_ends(
    queue: Queue, worker: Worker, conn: Connection, add: Callable[..., int]
) -> None:
    """It was postponed as its replica ended: a second try would overlap the first, until that process is gone."""
    id = add()
    queue.drain()
    conn.execute("update dispatcher.job set owner = 1, run_at = now() + interval '3 s' where id = %s", [id])
    assert worker.call_back(DONE).json() == {"id": id, "state": "scheduled"}
    assert value(conn, "select run_at > now() from dispatcher.job where id = %s", id)
    conn.execute("update dispatcher.job set run_at = now() where id = %s", [id])  # that is over
    queue.drain()
    assert (state(conn, id), job(conn, id)["result"]) == ("succeeded", {"pages": 12})


def test_answer_to_a_try_that_was_cut_off_is_not_lost(
    queue: Queue, worker: Worker, conn: Connection, add: Callable[..., int]
) -> None:
    worker.reply, worker.at_once = Reply(503), None
    id = add()
    queue.drain()
    assert worker.call_back(DONE).json() == {"id": id, "state": "pending"}
    queue.drain()
    assert (job(conn, id)["result"], len(worker.asked)) == ({"pages": 12}, 1)


def test_token_of_an_earlier_try_still_counts(
    queue: Queue, worker: Worker, conn: Connection, add: Callable[..., int]
) -> None:
    worker.reply = Reply(503)
    id = add()
    queue.drain()
    worker.reply = Reply(202)
    conn.execute("update dispatcher.job set run_at = now() where id = %s", [id])
    queue.drain()
    assert len({asked.headers["dispatcher-callback-token"] for asked in worker.asked}) == 2
    assert len({asked.headers["idempotency-key"] for asked in worker.asked}) == 1
    assert worker.call_back(DONE, number=0).status_code == 200
    queue.drain()
    assert state(conn, id) == "succeeded"


def test_accepted_request_is_not_sent_again(
    queue: Queue, worker: Worker, conn: Connection, add: Callable[..., int]
) -> None:
    id = add()
    for _ in range(3):
        queue.drain()
        conn.execute("update dispatcher.job set run_at = now() where id = %s", [id])
    assert (len(worker.asked), state(conn, id), job(conn, id)["failures"]) == (1, "scheduled", 0)
    assert value(conn, "select attempt from dispatcher.job where id = %s", id) == 3


def test_answer_that_never_comes_fails_the_job_at_its_deadline(
    queue: Queue, worker: Worker, conn: Connection, add: Callable[..., int]
) -> None:
    id = add("5s")
    queue.drain()
    assert value(conn, "select run_at between now() and now() + interval '5 s' from dispatcher.job where id = %s", id)
    conn.execute("update dispatcher.callback set accepted_at = accepted_at - interval '6 s'")
    conn.execute("update dispatcher.job set run_at = now() where id = %s", [id])
    queue.drain()
    assert state(conn, id) == "failed"
    assert "did not answer within 5s" in errors(conn, id)[-1]
    assert worker.call_back(DONE).status_code == 409
    # Run again by hand, it asks anew, with the time from the beginning.
    queue.client.retry(id)
    queue.drain()
    assert (len(worker.asked), state(conn, id)) == (2, "scheduled")
    assert worker.call_back(DONE, number=0).status_code == 404
    assert worker.call_back(DONE).status_code == 200


def test_second_answer_changes_nothing(queue: Queue, worker: Worker, conn: Connection, add: Callable[..., int]) -> None:
    id = add()
    queue.drain()
    assert [worker.call_back(DONE).status_code for _ in range(2)] == [200, 200]
    other = {"status": "failed", "message": "no"}
    assert worker.call_back(other).status_code == 409
    queue.drain()
    assert (state(conn, id), job(conn, id)["result"]) == ("succeeded", {"pages": 12})
    assert worker.call_back(DONE).json() == {"id": id, "state": "succeeded"}
    again = worker.call_back(other)
    assert (again.status_code, again.json()["type"]) == (409, "urn:dispatcher:WrongState")


def test_wrong_token_and_unknown_job_are_told_apart_by_nobody(
    queue: Queue, worker: Worker, api: Served, conn: Connection, add: Callable[..., int]
) -> None:
    id = add()
    queue.drain()
    other = queue.enqueue("http_request", {"url": "https://example.com"}, delay=3600)
    told = []
    for asked in (id, other, 999):
        for token in ("x", secrets.token_urlsafe(32), api.token(role="admin")):
            answer = api.caller(token).post(f"/jobs/{asked}/callback", json=DONE)
            told.append((answer.status_code, answer.json()["detail"].replace(str(asked), "N")))
    assert set(told) == {(404, "no job N waits for an answer with this token")}
    assert api.caller().post(f"/jobs/{id}/callback", json=DONE).status_code == 401
    assert value(conn, "select answer is null from dispatcher.callback where job_id = %s", id)
    assert state(conn, id) == "scheduled"


def test_callback_token_opens_nothing_else(queue: Queue, worker: Worker, api: Served, add: Callable[..., int]) -> None:
    id = add()
    queue.drain()
    caller = api.caller(worker.asked[0].headers["dispatcher-callback-token"])
    assert {caller.get(path).status_code for path in (f"/jobs/{id}", "/jobs", "/types")} == {401}


def test_token_itself_is_stored_nowhere(
    queue: Queue, worker: Worker, conn: Connection, add: Callable[..., int]
) -> None:
    worker.reply = Reply(500)
    id = add()
    queue.drain()
    token = worker.asked[0].headers["dispatcher-callback-token"]
    rows = conn.execute("select j::text, c::text from dispatcher.job j join dispatcher.callback c on c.job_id = j.id")
    for row in rows.fetchall():
        assert token not in str(row)
    assert state(conn, id) == "scheduled"


def test_canceled_job_takes_no_answer(queue: Queue, worker: Worker, conn: Connection, add: Callable[..., int]) -> None:
    id = add()
    queue.drain()
    queue.client.cancel(id)
    said = worker.call_back(DONE)
    assert (said.status_code, "it is canceled" in said.json()["detail"]) == (409, True)
    queue.drain()
    assert state(conn, id) == "canceled"


@pytest.mark.parametrize(("retry", "becomes"), [(False, "failed"), (True, "scheduled")])
def test_failure_is_told_as_the_receiver_tells_it(
    queue: Queue, worker: Worker, conn: Connection, add: Callable[..., int], retry: bool, becomes: str
) -> None:
    id = add()
    queue.drain()
    worker.call_back({"status": "failed", "message": "paper\njam", "retry": retry})
    queue.drain()
    assert state(conn, id) == becomes
    assert errors(conn, id)[-1].endswith("paper jam")


def test_receiver_that_always_fails_is_not_asked_for_ever(
    queue: Queue, worker: Worker, conn: Connection, add: Callable[..., int]
) -> None:
    id = add(max_attempts=3)
    for _ in range(6):
        queue.drain()
        if state(conn, id) == "failed":
            break
        worker.call_back({"status": "failed", "message": "no", "retry": True})
        queue.drain()
        conn.execute("update dispatcher.job set run_at = now() where id = %s and state = 'scheduled'", [id])
    assert (state(conn, id), len(worker.asked)) == ("failed", 3)


def test_answer_at_once_needs_no_callback(
    queue: Queue, worker: Worker, conn: Connection, add: Callable[..., int]
) -> None:
    worker.reply = Reply(200, b"done")
    id = add()
    queue.drain()
    assert job(conn, id)["result"]["body"] == "done"
    assert worker.call_back(DONE).status_code == 409


@pytest.mark.parametrize("url", ["", "ftp://x", "api.example.com"])
def test_without_an_address_to_call_nothing_is_sent(
    queue: Queue, worker: Worker, conn: Connection, add: Callable[..., int], monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("DISPATCHER_CALLBACK_URL", url)
    id = add()
    queue.drain()
    assert (state(conn, id), worker.asked) == ("failed", [])
    assert "set DISPATCHER_CALLBACK_URL" in errors(conn, id)[-1]


@pytest.mark.parametrize(
    "answer",
    [
        {},
        [],
        {"status": "running"},
        {"status": "succeeded", "extra": 1},
        {"status": "failed", "message": 5},
        {"status": "failed", "message": "x", "retry": "perhaps"},
        {"status": "succeeded", "result": "a\0b"},
    ],
)
def test_answer_of_another_form_is_refused(
    queue: Queue, worker: Worker, conn: Connection, add: Callable[..., int], answer: Any
) -> None:
    id = add()
    queue.drain()
    assert worker.call_back(answer).status_code == 422
    assert state(conn, id) == "scheduled"


@pytest.mark.parametrize(
    ("answer", "sqlstate"),
    [
        (None, "DJ004"),
        ([], "DJ004"),
        ({}, "DJ004"),
        ({"status": "succeeded", "message": "x"}, "DJ004"),
        ({"status": "failed"}, "DJ004"),
        ({"status": "failed", "message": "x", "retry": 1}, "DJ004"),
        ({"status": "succeeded", "result": "x" * 1_100_000}, "DJ003"),
        ({"status": "succeeded"}, "DJ005"),
    ],
)
def test_function_refuses_what_it_does_not_know(conn: Connection, answer: Any, sqlstate: str) -> None:
    with pytest.raises(psycopg.Error) as caught:
        conn.execute("select dispatcher.answer(1, 'x', %s::jsonb)", [None if answer is None else json.dumps(answer)])
    assert caught.value.sqlstate == sqlstate


def test_try_that_is_no_longer_the_running_one_writes_nothing(
    queue: Queue, worker: Worker, conn: Connection, site: Site
) -> None:
    """The job was given to another replica while its request was under way."""
    id = queue.enqueue("http_request", payload(site))
    claimed = queue._claim()
    assert claimed is not None

    def lose() -> None:
        assert worker.came.wait(30)
        conn.execute("update dispatcher.job set attempt = attempt + 1 where id = %s", [id])
        go.set()

    go = threading.Event()
    worker.hold = go
    thread = threading.Thread(target=lose)
    thread.start()
    queue._pool.run(claimed)
    thread.join()
    assert len(worker.asked) == 1
    assert value(conn, "select accepted_at is null from dispatcher.callback where job_id = %s", id)
    assert value(conn, "select checkpoint ->> 'callback' from dispatcher.job where id = %s", id) == "asked"


@pytest.mark.parametrize("level", ["enqueue", "read"])
def test_answering_in_sql_needs_the_level_enqueue(
    queue: Queue, worker: Worker, conn: Connection, superuser_dsn: str, add: Callable[..., int], level: str
) -> None:
    id = add()
    queue.drain()
    role = f"role_{secrets.token_hex(6)}"
    with psycopg.connect(superuser_dsn, autocommit=True) as admin:
        admin.execute(f"create role {role}".encode())
        try:
            conn.execute("select dispatcher.grant_access(%s, %s)", [role, level])
            admin.execute(f"set role {role}".encode())
            token = worker.asked[0].headers["dispatcher-callback-token"]
            ask = "select dispatcher.answer(%s, %s, %s::jsonb)"
            if level == "enqueue":
                assert value(admin, ask, id, token, json.dumps(DONE)) == "pending"
            else:
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    admin.execute(ask.encode(), [id, token, json.dumps(DONE)])
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                admin.execute("select token_hashes from dispatcher.callback")
        finally:
            admin.execute("reset role")
            admin.execute(f"drop owned by {role}".encode())
            admin.execute(f"drop role {role}".encode())


def test_row_goes_with_its_job(queue: Queue, conn: Connection, add: Callable[..., int]) -> None:
    id = add()
    queue.drain()
    assert value(conn, "select count(*) from dispatcher.callback") == 1
    conn.execute("delete from dispatcher.job where id = %s", [id])
    assert value(conn, "select count(*) from dispatcher.callback") == 0


def test_an_answer_that_its_writer_does_not_commit_holds_nobody_up(
    dsn: str, queue: Queue, worker: Worker, conn: Connection, add: Callable[..., int]
) -> None:
    """It may be part of somebody's long transaction: the job looks again later, and no try is used up."""
    id, worker.hold = add(), threading.Event()
    drained = threading.Thread(target=queue.drain)
    drained.start()
    assert worker.came.wait(30)
    token = worker.asked[0].headers["dispatcher-callback-token"]
    with psycopg.connect(dsn) as writer:
        writer.execute("select dispatcher.answer(%s, %s, %s)", [id, token, json.dumps(DONE)])
        worker.hold.set()
        drained.join(30)
        assert not drained.is_alive()
        assert (job(conn, id)["state"], job(conn, id)["failures"]) == ("scheduled", 0)
    conn.execute("update dispatcher.job set run_at = now() where id = %s", [id])
    queue.drain()
    assert (job(conn, id)["state"], job(conn, id)["result"], len(worker.asked)) == ("succeeded", {"pages": 12}, 1)


def test_a_job_is_removed_although_somebody_holds_its_callback(
    dsn: str, queue: Queue, worker: Worker, conn: Connection, add: Callable[..., int]
) -> None:
    id = add()
    queue.drain()
    queue.client.cancel(id)
    with psycopg.connect(dsn) as other:
        other.execute("select from dispatcher.callback where job_id = %s for update", [id])
        conn.execute("set lock_timeout = '50ms'")
        conn.execute("delete from dispatcher.job where id = %s", [id])
    assert value(conn, "select count(*) from dispatcher.job where id = %s", id) == 0
