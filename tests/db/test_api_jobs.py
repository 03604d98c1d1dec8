"""Jobs by HTTP: created, read, listed, ended, run again; by people and programs that have no database."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from dispatcher import Client
from dispatcher.db import Connection
from tests.db.running import enqueue, job, state, until, value
from tests.db.serving import Served


def end(conn: Connection, id: int, state: str, result: str | None = None, url: str | None = None) -> None:
    """As a replica ends a job."""
    conn.execute(
        "update dispatcher.job set state = %s, started_at = now(), finished_at = now(), attempt = 1,"
        " result = %s::jsonb, result_url = %s where id = %s",
        [state, result, url, id],
    )


def test_a_created_job_is_answered_as_it_stands_in_the_database(api: Served, conn: Connection) -> None:
    answer = api.as_().post("/jobs", json={"type": "quick", "payload": {"n": 1}, "priority": -3, "tenant": "acme"})
    assert answer.status_code == 202
    body = answer.json()
    assert answer.headers["location"] == f"/jobs/{body['id']}"
    assert (body["state"], body["created"]) == ("pending", True)
    row = job(conn, body["id"])
    assert (row["payload"], row["priority"], row["tenant"]) == ({"n": 1}, -3, "acme")
    assert datetime.fromisoformat(body["created_at"]) == row["created_at"]


def test_each_option_reaches_the_job(api: Served, conn: Connection) -> None:
    caller = api.as_()
    at = (datetime.now(UTC) + timedelta(days=1)).replace(microsecond=0)
    first = caller.post(
        "/jobs", json={"type": "quick", "run_at": at.isoformat(), "max_attempts": 7, "timeout": "5min"}
    ).json()
    assert first["state"] == "scheduled"
    assert job(conn, first["id"])["run_at"] == at
    assert value(conn, "select timeout_s from dispatcher.job where id = %s", first["id"]) == 300
    second = caller.post(
        "/jobs", json={"type": "quick", "after": [first["id"]], "on_failure": "run", "delay": 0}
    ).json()
    assert second["state"] == "blocked"
    batch = caller.post("/batches", json={"type": "quick", "payloads": [{}, {}]}).json()
    child = caller.post("/jobs", json={"type": "quick", "parent": batch["id"]}).json()
    assert caller.get(f"/jobs/{child['id']}").json()["parent_id"] == batch["id"]
    unique = caller.post("/jobs", json={"type": "quick", "unique_key": "k"}).json()
    again = caller.post("/jobs", json={"type": "quick", "unique_key": "k"})
    assert (again.status_code, again.json()["id"], again.json()["created"]) == (200, unique["id"], False)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"type": "nothing_of_the_kind"}, 422, "unknown job type"),
        ({"type": "quick", "payload": []}, 422, "payload"),
        ({"type": "quick", "prioritty": 1}, 422, "prioritty"),
        ({"type": "quick", "priority": "1"}, 422, "priority"),
        ({"type": "quick", "priority": 40000}, 422, "priority"),
        ({"type": "quick", "run_at": "2030-01-01T00:00:00"}, 422, "run_at"),
        ({"type": "quick", "run_at": "2030-01-01T00:00:00Z", "delay": 1}, 422, "not both"),
        ({"type": "quick", "delay": -1}, 422, "delay"),
        ({"type": "quick", "timeout": 0}, 422, "timeout"),
        ({"type": "quick", "after": [4711]}, 422, "4711"),
        ({"type": "quick", "parent": 4711}, 422, "4711"),
        ({"type": "quick", "payload": {"nul": "\0"}}, 422, "NUL"),
        ({"payload": {}}, 422, "type"),
        ([], 422, ""),
    ],
)
def test_a_job_that_is_wrong_is_refused_in_one_line(
    api: Served, conn: Connection, body: Any, status: int, words: str
) -> None:
    answer = api.as_().post("/jobs", json=body)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["status"], problem["title"]) == (status, "Unprocessable Content")
    assert words in problem["detail"]
    assert "\n" not in problem["detail"]
    assert value(conn, "select count(*) from dispatcher.job") == 0


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b'{"type": NaN}', b"\xff"])
def test_what_is_no_json_is_a_400(api: Served, body: bytes) -> None:
    answer = api.as_().post("/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.headers["content-type"] == "application/problem+json"


def test_one_wrong_job_among_many_callers_fails_alone(api: Served, conn: Connection) -> None:
    """They go to the database in groups."""
    caller = api.as_()
    start = threading.Barrier(24)

    def create(number: int) -> int:
        start.wait()
        type = "unheard_of" if number % 8 == 0 else "quick"
        return caller.post("/jobs", json={"type": type, "payload": {"n": number}}).status_code

    with ThreadPoolExecutor(24) as threads:
        statuses = list(threads.map(create, range(24)))
    assert [status for number, status in enumerate(statuses) if number % 8 == 0] == [422] * 3
    assert [status for number, status in enumerate(statuses) if number % 8] == [202] * 21
    numbers = value(conn, "select array_agg((payload ->> 'n')::integer order by 1) from dispatcher.job")
    assert sorted(numbers) == [number for number in range(24) if number % 8]


def test_an_unchanged_job_is_not_sent_again(api: Served, conn: Connection) -> None:
    caller, id = api.as_("read"), enqueue(conn)
    first = caller.get(f"/jobs/{id}")
    tag = first.headers["etag"]
    for given in (tag, f'"other", {tag}', f"W/{tag}", "*"):
        again = caller.get(f"/jobs/{id}", headers={"If-None-Match": given})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    end(conn, id, "succeeded", "1")
    changed = caller.get(f"/jobs/{id}", headers={"If-None-Match": tag})
    assert (changed.status_code, changed.json()["state"]) == (200, "succeeded")


def test_a_job_shows_what_the_view_shows(api: Served, conn: Connection) -> None:
    id = enqueue(conn, payload={"a": ["ü", {"b": None}]}, tenant="acme", unique_key="k", max_attempts=3, timeout=30)
    shown = api.as_("read").get(f"/jobs/{id}").json()
    with Client(api.dsn) as client:
        info = client.get(id)
    for name in (
        "id",
        "type",
        "tenant",
        "state",
        "priority",
        "payload",
        "result",
        "errors",
        "attempt",
        "failures",
        "owner",
    ):
        assert shown[name] == getattr(info, name), name
    assert (shown["timeout"], shown["unique_key"], shown["max_attempts"]) == (30.0, "k", 3)
    assert datetime.fromisoformat(shown["created_at"]) == info.created_at
    assert shown["created_at"].endswith("Z")


@pytest.mark.parametrize("id", ["0", "-1", "abc", "4711", str(2**63), "1.5", "1e3", "%00"])
@pytest.mark.parametrize("what", ["", "/result", "/explain", "/events"])
def test_what_is_no_job_is_a_404_or_422(api: Served, id: str, what: str) -> None:
    assert api.as_("read").get(f"/jobs/{id}{what}").status_code in (404, 422)


def test_a_page_stays_right_while_jobs_come_and_go(api: Served, conn: Connection) -> None:
    caller = api.as_("read")
    ids = [enqueue(conn) for _ in range(10)]
    seen: list[int] = []
    cursor: dict[str, str] = {}
    while True:
        page = caller.get("/jobs", params={"limit": 3, **cursor}).json()
        seen += [one["id"] for one in page["jobs"]]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
        enqueue(conn)  # newer ones are no concern of this list
        conn.execute("delete from dispatcher.job where id = any(%s) and id <> all(%s)", [ids[:2], seen])
    assert seen == ids[:1:-1]


def test_a_page_says_where_the_next_one_is(api: Served, conn: Connection) -> None:
    caller = api.as_("read")
    ids = [enqueue(conn, tenant="a/b c") for _ in range(3)]
    first = caller.get("/jobs", params={"limit": 2, "tenant": "a/b c"})
    second = caller.get(first.links["next"]["url"])
    assert [one["id"] for one in first.json()["jobs"] + second.json()["jobs"]] == ids[::-1]
    assert "link" not in second.headers


def test_lists_are_filtered(api: Served, conn: Connection) -> None:
    caller = api.as_("read")
    slow, acme = enqueue(conn, "slow"), enqueue(conn, tenant="acme")
    failed, batch = enqueue(conn), caller_batch(api)
    end(conn, failed, "failed")

    def found(**params: Any) -> set[int]:
        answer = caller.get("/jobs", params=params)
        assert answer.status_code == 200, answer.text
        return {one["id"] for one in answer.json()["jobs"]}

    assert found(type="slow") == {slow}
    assert found(tenant="acme") == {acme}
    assert found(state="failed") == {failed}
    assert found(state=["failed", "pending"], type="quick", tenant="acme") == {acme}
    assert len(found(parent=batch)) == 2
    assert found(since=(datetime.now(UTC) + timedelta(hours=1)).isoformat()) == set()
    assert slow in found(until=(datetime.now(UTC) + timedelta(hours=1)).isoformat())
    for wrong in (
        {"limit": 0},
        {"limit": 501},
        {"state": "waiting"},
        {"cursor": "x"},
        {"since": "2030-01-01T00:00:00"},
    ):
        assert caller.get("/jobs", params=wrong).status_code == 422


def caller_batch(api: Served) -> int:
    id = api.as_().post("/batches", json={"type": "quick", "payloads": [{}, {}]}).json()["id"]
    assert isinstance(id, int)
    return id


def test_a_result_is_there_once_the_job_ended_well(api: Served, conn: Connection) -> None:
    caller = api.as_("read")
    ids = [enqueue(conn) for _ in range(5)]
    assert caller.get(f"/jobs/{ids[0]}/result").status_code == 404
    end(conn, ids[0], "succeeded", '{"n": [1, null]}')
    end(conn, ids[1], "partial", "null")
    end(conn, ids[2], "succeeded", None, "s3://bucket/jobs/3/result.json")
    end(conn, ids[3], "failed")
    end(conn, ids[4], "canceled")
    both = enqueue(conn)
    end(conn, both, "succeeded", '{"rows": 3}', "file:///tmp/report.csv")  # a file beside the result
    assert caller.get(f"/jobs/{both}/result").json() == {"rows": 3}
    assert caller.get(f"/jobs/{ids[0]}/result").json() == {"n": [1, None]}
    assert caller.get(f"/jobs/{ids[1]}/result").json() is None
    stored = caller.get(f"/jobs/{ids[2]}/result", follow_redirects=False)
    assert (stored.status_code, stored.headers["location"]) == (303, "s3://bucket/jobs/3/result.json")
    assert [caller.get(f"/jobs/{id}/result").status_code for id in ids[3:]] == [409, 409]


def test_cancel_and_retry_answer_the_state_they_leave(api: Served, conn: Connection) -> None:
    caller, id = api.as_(), enqueue(conn)
    assert caller.post(f"/jobs/{id}/cancel").json() == {"id": id, "state": "canceled"}
    assert state(conn, id) == "canceled"
    assert caller.post(f"/jobs/{id}/cancel").json() == {"id": id, "state": "canceled"}
    assert caller.post(f"/jobs/{id}/retry").json() == {"id": id, "state": "pending"}
    end(conn, id, "succeeded", "1")
    assert caller.post(f"/jobs/{id}/cancel").status_code == 409
    assert caller.post(f"/jobs/{id}/retry").status_code == 409
    for verb in ("cancel", "retry"):
        assert caller.post(f"/jobs/4711/{verb}").status_code == 404


def test_retry_against_a_live_job_of_the_same_key_is_a_conflict(api: Served, conn: Connection) -> None:
    """Of this request alone: neither a fault of the server nor a second job under the key."""
    caller = api.as_()
    first = enqueue(conn, unique_key="k")
    end(conn, first, "failed")
    second = enqueue(conn, unique_key="k")
    answer = caller.post(f"/jobs/{first}/retry")
    assert answer.status_code == 409
    assert "another unfinished job has its unique key" in answer.json()["detail"]
    assert [state(conn, id) for id in (first, second)] == ["failed", "pending"]


def test_a_batch_is_shown_with_its_counts(api: Served, conn: Connection) -> None:
    caller = api.as_()
    made = caller.post(
        "/batches",
        json={
            "type": "quick",
            "payloads": [{"n": n} for n in range(3)],
            "callback": {"type": "slow", "payload": {"x": 1}},
        },
    )
    assert made.status_code == 202
    assert made.headers["location"] == f"/batches/{made.json()['id']}"
    shown = caller.get(made.headers["location"]).json()
    assert (shown["total"], shown["pending"], shown["state"]) == (3, 3, "running")
    assert job(conn, shown["callback_id"])["payload"] == {"x": 1}
    assert caller.get(f"/batches/{enqueue(conn)}").status_code == 404
    assert caller.post("/batches", json={"type": "quick", "payloads": []}).status_code == 422


def test_a_long_poll_ends_with_the_job_and_not_before(api: Served, conn: Connection) -> None:
    caller, id = api.as_("read"), enqueue(conn)
    answers: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: answers.append(caller.get(f"/jobs/{id}", params={"wait": "20s"})))
    waiting.start()
    until(lambda: api.subscribers == 1)
    conn.execute("update dispatcher.job set state = 'running', attempt = 1, owner = 1 where id = %s", [id])
    conn.execute("select pg_notify('dispatcher_events', %s)", [str(id)])
    end(conn, id, "succeeded", "1")
    conn.execute("select pg_notify('dispatcher_events', %s)", [str(id)])
    waiting.join(20)
    assert answers[0].json()["state"] == "succeeded"
    assert caller.get(f"/jobs/{enqueue(conn)}", params={"wait": "100ms"}).json()["state"] == "pending"
    assert caller.get(f"/jobs/{id}", params={"wait": "soon"}).status_code == 422


def test_explain_says_why(api: Served, conn: Connection) -> None:
    found = api.as_("read").get(f"/jobs/{enqueue(conn)}/explain").json()
    assert (found["state"], found["reasons"][0]["kind"]) == ("pending", "no_replica")


def test_only_what_is_there_is_served(api: Served) -> None:
    caller = api.as_("admin")
    assert caller.get("/nothing").status_code == 404
    answer = caller.put("/jobs")
    assert (answer.status_code, answer.headers["content-type"]) == (405, "application/problem+json")
    assert set(answer.headers["allow"].split(", ")) >= {"GET", "POST"} or answer.headers["allow"]


def test_a_read_with_and_without_a_query_is_answered_alike(api: Served, conn: Connection) -> None:
    """There is a quick way for those without one."""
    id = enqueue(conn, tenant="acme", unique_key="4:acme:k")
    callers = [api.as_("read"), api.as_("read", "acme"), api.as_("read", "other"), api.caller(), api.caller("djt_x")]
    for caller in callers:
        for number in (id, id + 1, 2**70):
            plain, queried = caller.get(f"/jobs/{number}"), caller.get(f"/jobs/{number}", params={"wait": "0ms"})
            if number < 2**63:
                assert (plain.status_code, plain.content) == (queried.status_code, queried.content)
                assert plain.headers.get("etag") == queried.headers.get("etag")
                assert plain.headers["content-type"] == queried.headers["content-type"]
            assert plain.status_code in (200, 401, 404)
    for method in ("head", "post", "delete", "options"):
        answer = callers[0].request(method, f"/jobs/{id}")
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
