"""wait_until: sees what comes true, gives up when it must, and holds no thread in between."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from dispatcher_executors.wait_until import wait_until

from dispatcher import Client
from dispatcher.context import Context, Interrupted
from dispatcher.job import CancelReason, Job, JobInfo, State
from dispatcher.testing import Ended, Queue, run_inline
from tests.db.running import job, open_transaction, state, until, value
from tests.system.replicas import Fleet
from tests.web import Asked, Reply, Site, serve

Connection = psycopg.Connection[Any]
Look = Callable[..., Ended]
READY = {"path": "/body/ready", "equals": True}
JSON = (("content-type", "application/json"),)


class Script:
    """A server that says one thing after the other, and the last one for ever."""

    def __init__(self) -> None:
        self.replies: list[Reply | Callable[[Asked], Reply]] = [Reply()]

    def __call__(self, asked: Asked) -> Reply:
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        return reply(asked) if callable(reply) else reply

    def say(self, *values: Any) -> None:
        """JSON values with status 200, or whole replies."""
        self.replies = [value if isinstance(value, Reply) or callable(value) else say(value) for value in values]


def say(value: Any, status: int = 200, *headers: tuple[str, str]) -> Reply:
    return Reply(status, json.dumps(value).encode(), JSON + headers)


def rpc(**said: Any) -> Callable[[Asked], Reply]:
    """An answer to the call that is asked."""
    return lambda asked: say({"jsonrpc": "2.0", "id": json.loads(asked.body)["id"], **said})


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def site(script: Script, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with serve(script) as site:
        monkeypatch.setenv("DISPATCHER_HTTP_HOSTS", site.url)
        yield site


@pytest.fixture
def queue(dsn: str) -> Iterator[Queue]:
    with Queue(dsn, [wait_until]) as queue:
        yield queue


@pytest.fixture
def look(dsn: str) -> Look:
    """One look."""

    def run(payload: dict[str, Any], **options: Any) -> Ended:
        return run_inline(wait_until, {"jitter": 0, **payload}, connect=lambda: psycopg.connect(dsn), **options)

    return run


@pytest.fixture
def queries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives the administrator's file the one query `q`."""
    file = tmp_path / "queries.toml"
    monkeypatch.setenv("DISPATCHER_QUERIES", str(file))

    def write(sql: str, more: str = "") -> None:
        file.write_text(f"[q]\nsql = {json.dumps(sql)}\n{more}\n", encoding="utf-8")

    return write


def http(site: Site, condition: Any = READY, **more: Any) -> dict[str, Any]:
    return {"http": {"url": site.url + "/health"}, "until": condition, **more}


def call(site: Site, condition: Any, **more: Any) -> dict[str, Any]:
    return {"json_rpc": {"url": site.url, "method": "eth_get", "params": ["0xab"]}, "until": condition, **more}


def message(ended: Ended | JobInfo) -> str:
    text: str = ended.errors[-1]["message"]
    assert "\n" not in text
    return text


def run_one(queue: Queue) -> None:
    """One look of one job."""
    execution = queue._claim()
    assert execution is not None
    queue._pool.run(execution)
    while execution.key in queue._inflight:
        queue._completer.step()


def age(conn: Connection, id: int, by: str) -> None:
    """As if the job had been enqueued earlier."""
    conn.execute("update dispatcher.job set created_at = created_at - %s::interval where id = %s", [by, id])


PAGE = (Path(__file__).parents[2] / "docs" / "executors" / "wait_until.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("example", re.findall(r"wait_until'?,? '(\{.*?\})'", PAGE, re.DOTALL))
def test_examples_of_the_page_are_payloads(queue: Queue, example: str) -> None:
    assert queue.enqueue("wait_until", json.loads(example)) > 0


def test_page_has_an_example_of_each_kind() -> None:
    assert len(re.findall(r"wait_until'?,? '(\{.*?\})'", PAGE, re.DOTALL)) == 3


# What comes true


def test_third_look_finds_it_confirmed(queue: Queue, site: Site, script: Script, conn: Connection) -> None:
    script.say({"ready": False}, {"ready": False}, {"ready": True, "build": 5})
    id = queue.enqueue("wait_until", http(site))
    [ended] = queue.drain(scheduled=True)
    assert (ended.id, ended.state, ended.failures) == (id, State.SUCCEEDED, 0)
    assert ended.result.pop("waited_s") >= 0
    assert ended.result == {
        "value": True,
        "answer": {"status": 200, "body": {"ready": True, "build": 5}},
        "polls": 3,
    }
    assert (len(site.asked), ended.errors) == (3, [])


def test_pauses_grow_and_looks_use_up_no_try(queue: Queue, site: Site, script: Script, conn: Connection) -> None:
    script.say({"ready": False})
    id = queue.enqueue("wait_until", http(site, every=10, backoff=2, max_every=60, jitter=0), max_attempts=1)
    pauses = []
    for _ in range(5):
        run_one(queue)
        pauses.append(
            round(float(value(conn, "select extract(epoch from run_at - now()) from dispatcher.job where id = %s", id)))
        )
        assert state(conn, id) == "scheduled"
        conn.execute("update dispatcher.job set run_at = now() where id = %s", [id])
    assert pauses == [10, 20, 40, 60, 60]
    assert job(conn, id)["failures"] == 0


def test_leader_with_four_threads_waits_for_more_than_that_and_runs_others(
    dsn: str, site: Site, script: Script, conn: Connection, tmp_path: Path
) -> None:
    ready = threading.Event()
    script.say(lambda _asked: say({"ready": ready.is_set()}))
    settings = {"http_hosts": site.url, "executors": "dispatcher_executors.wait_until", "threads": "4"}
    settings["commands"] = '{"true": "/bin/true"}'
    with Fleet(dsn, tmp_path) as fleet, Client(dsn) as client:
        fleet.start_leader(**settings)
        waiting = [client.enqueue("wait_until", http(site, every=1, backoff=1)) for _ in range(20)]
        until(lambda: len(site.asked) >= 20)
        until(lambda: {state(conn, id) for id in waiting} == {"scheduled"})
        other = client.enqueue("command", {"program": "true"})
        until(lambda: state(conn, other) == "succeeded")
        ready.set()
        until(lambda: {state(conn, id) for id in waiting} == {"succeeded"}, within_s=30)
        assert all(client.get(id).result["polls"] >= 2 for id in waiting)


def test_status_is_waited_for_without_a_body(look: Look, site: Site, script: Script) -> None:
    script.say(Reply(503, b"starting"), Reply(404), Reply(204))
    payload = http(site, {"path": "/status", "in": [200, 204]})
    assert [look(payload).state for _ in range(3)] == [State.SCHEDULED, State.SCHEDULED, State.SUCCEEDED]
    script.say(Reply(404, b"gone"))
    ended = look(http(site, {"path": "/status", "equals": 404}))
    assert ended.result["answer"] == {"status": 404, "body": "gone"}


def test_body_of_an_error_page_does_not_count_as_the_answer(look: Look, site: Site, script: Script) -> None:
    """It has all that one waits for, and is not about it."""
    script.say(say({"ready": True}, 503))
    assert look(http(site)).state is State.SCHEDULED
    assert look(http(site, {"path": "/body/state", "exists": False}, fail_if=READY)).state is State.SCHEDULED
    script.say(say({"ready": True}, 302, ("location", "/elsewhere")))
    assert look(http(site)).state is State.SCHEDULED


def test_json_that_is_called_plain_text_is_json(look: Look, site: Site, script: Script) -> None:
    script.say(Reply(200, b' {"ready": true}', (("content-type", "text/plain"),)))
    assert look(http(site)).result["value"] is True


def test_request_is_sent_as_http_request_sends_it_but_never_as_a_repetition(
    look: Look, site: Site, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receiver that knows the key would give its first answer for ever."""
    monkeypatch.setenv("DISPATCHER_SECRET_NODE", "tok-5f2e")
    monkeypatch.setenv("DISPATCHER_SECRET_NODE_HOSTS", site.url)
    script.say({"token": "Bearer tok-5f2e"})
    asked = {"url": site.url, "method": "POST", "body": {"json": {"n": 1}}}
    asked["headers"] = {"authorization": {"secret": "NODE", "prefix": "Bearer "}}
    ended = look({"http": asked, "until": {"path": "/body/token", "starts_with": "Bearer"}}, attempt=2, failures=0)
    [arrived] = site.asked
    assert (arrived.method, json.loads(arrived.body)) == ("POST", {"n": 1})
    assert arrived.headers["authorization"] == "Bearer tok-5f2e"
    assert arrived.headers["idempotency-key"] is None
    assert (ended.result["value"], ended.result["polls"]) == ("Bearer ***", 2)
    assert "tok-5f2e" not in json.dumps(ended.result) + str(ended.progress)


def test_secret_that_a_server_sends_back_is_not_kept(
    look: Look, site: Site, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in an answer of JSON-RPC, nor in an error, nor in JSON that is called plain text."""
    monkeypatch.setenv("DISPATCHER_SECRET_NODE", "tok-5f2e")
    monkeypatch.setenv("DISPATCHER_SECRET_NODE_HOSTS", site.url)
    headers = {"authorization": {"secret": "NODE"}}
    payload = call(site, {"path": "/result", "exists": True}, deadline=0.001)
    payload["json_rpc"]["headers"] = headers
    plain = http(site, {"path": "/body/seen", "exists": True})
    plain["http"]["headers"] = headers
    script.say(
        rpc(result="tok-5f2e"), rpc(error={"code": 1, "message": "no tok-5f2e"}), Reply(200, b'{"seen": "tok-5f2e"}')
    )
    ended = [look(payload), look(payload), look(plain)]
    assert [asked.headers["authorization"] for asked in site.asked] == ["tok-5f2e"] * 3
    assert [one.result and one.result["value"] for one in ended] == ["***", None, "***"]
    assert "error 1: no ***" in message(ended[1])
    assert "tok-5f2e" not in str([(one.result, one.errors, one.progress) for one in ended])


def test_query_that_becomes_true(queue: Queue, queries: Callable[..., None], conn: Connection) -> None:
    conn.execute("create table orders (id int, state text, at timestamptz, total numeric)")
    queries("select state, total, at from orders where id = %(id)s or %(id)s = 0 order by id", 'params = {id = "int"}')
    named = {"query": {"name": "q", "params": {"id": 7}}}
    paid = queue.enqueue("wait_until", {**named, "until": {"path": "/row/state", "equals": "paid"}})
    two = {"query": {"name": "q", "params": {"id": 0}}, "until": {"path": "/rows", "at_least": 2}}
    many = queue.enqueue("wait_until", two)
    run_one(queue)
    run_one(queue)
    conn.execute("insert into orders values (7, 'open', '2013-01-31 12:00+00', 12.50)")
    conn.execute("update dispatcher.job set run_at = now()")
    run_one(queue)
    run_one(queue)
    assert [state(conn, id) for id in (paid, many)] == ["scheduled", "scheduled"]
    conn.execute("insert into orders values (8, 'open', null, null); update orders set state = 'paid' where id = 7")
    queue.drain(scheduled=True)
    row = {"state": "paid", "total": 12.5, "at": "2013-01-31T12:00:00+00:00"}
    assert job(conn, paid)["result"].items() >= {"value": "paid", "answer": {"rows": 1, "row": row}, "polls": 3}.items()
    assert job(conn, many)["result"].items() >= {"value": 2, "answer": {"rows": 2, "row": row}, "polls": 3}.items()


# JSON-RPC


def test_hexadecimal_block_numbers_are_numbers(queue: Queue, site: Site, script: Script, conn: Connection) -> None:
    script.say(rpc(result="0x9"), rpc(result="0xf"), rpc(result="0x10"))
    queue.enqueue("wait_until", call(site, {"path": "/result", "as": "hex", "at_least": 16}))
    [ended] = queue.drain(scheduled=True)
    assert (ended.result["value"], ended.result["polls"]) == ("0x10", 3)
    calls = [json.loads(asked.body) for asked in site.asked]
    assert calls[0] == {"jsonrpc": "2.0", "id": 1, "method": "eth_get", "params": ["0xab"]}
    assert [one["id"] for one in calls] == [1, 2, 3]
    assert {(asked.method, asked.headers["content-type"]) for asked in site.asked} == {("POST", "application/json")}


def test_receipt_is_waited_for_and_one_that_was_reverted_fails_at_once(look: Look, site: Site, script: Script) -> None:
    script.say(rpc(result=None), rpc(result={"status": "0x1"}), rpc(result={"status": "0x0"}))
    status = {"path": "/result/status", "as": "hex"}
    payload = call(site, {**status, "equals": 1}, fail_if={**status, "equals": 0})
    assert look(payload).state is State.SCHEDULED
    assert look(payload).state is State.SUCCEEDED
    ended = look(payload)
    assert ended.state is State.FAILED
    assert 'fail_if holds: /result/status is "0x0"' in message(ended)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (rpc(error={"code": -32000, "message": "header not\nfound"}), "error -32000: header not found"),
        (rpc(error="odd"), "error None: odd"),
        (
            lambda asked: say({"jsonrpc": "2.0", "id": 77, "result": 5}),
            "answered another call than this one: the id is 77",
        ),
        (lambda asked: say({"jsonrpc": "2.0", "result": 5}), "the id is None"),
        (lambda asked: say({"jsonrpc": "2.0", "id": 1}), "what is not JSON-RPC"),
        (lambda asked: say([{"jsonrpc": "2.0", "id": 1, "result": 5}]), "what is not JSON-RPC"),
        (lambda asked: Reply(200, b"<html>\n hello"), "what is not JSON-RPC: <html> hello"),
        (lambda asked: Reply(502, b"bad gateway"), "status 502: bad gateway"),
        (lambda asked: say({"jsonrpc": "2.0", "id": 1, "result": 5}, 503), "status 503"),
    ],
)
def test_error_and_what_answers_another_call_are_waited_past(
    look: Look, site: Site, script: Script, reply: Any, said: str
) -> None:
    script.say(reply)
    payload = call(site, {"path": "/result", "equals": 5})
    ended = look(payload)
    assert ended.state is State.SCHEDULED
    assert said in (ended.progress[-1][1] or "")
    ended = look({**payload, "errors": "fail"})
    assert ended.state is State.FAILED
    assert said in message(ended)


@pytest.mark.parametrize("code", [-32700, -32600, -32601, -32602])
def test_call_that_can_never_be_right_fails_at_once(look: Look, site: Site, script: Script, code: int) -> None:
    script.say(lambda asked: say({"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": "wrong"}}, 400))
    ended = look(call(site, {"path": "/result", "exists": True}))
    assert (ended.state, ended.failures) == (State.FAILED, 1)
    assert f"error {code}: wrong" in message(ended)


def test_error_can_be_what_one_waits_for(look: Look, site: Site, script: Script) -> None:
    script.say(rpc(error={"code": -32601, "message": "gone"}))
    gone = {"path": "/error/code", "equals": -32601}
    assert look(call(site, gone)).result["value"] == -32601
    ended = look(call(site, {"path": "/result", "exists": True}, fail_if=gone))
    assert "fail_if holds: /error/code is -32601" in message(ended)


# What goes wrong meanwhile


def test_server_that_is_away_is_waited_past(look: Look, site: Site, script: Script) -> None:
    site.server.shutdown()
    site.server.server_close()
    ended = look(http(site))
    assert (ended.state, ended.failures, ended.delay_s) == (State.SCHEDULED, 0, 5)
    assert "Connection refused" in (ended.progress[-1][1] or "")
    assert "Connection refused" in message(look(http(site, errors="fail")))


def test_server_that_hangs_costs_one_look_and_no_try(look: Look, site: Site, script: Script) -> None:
    over = threading.Event()
    script.say(lambda asked: Reply(200 + over.wait(50)))
    ended = look(http(site, timeout=0.3))
    over.set()
    assert (ended.state, ended.failures) == (State.SCHEDULED, 0)
    assert "the time is over" in (ended.progress[-1][1] or "")


def test_query_that_takes_too_long_costs_one_look_and_no_try(look: Look, queries: Callable[..., None]) -> None:
    payload = {"query": {"name": "q"}, "until": {"path": "/rows", "equals": 1}}
    queries("select pg_sleep(30)")
    ended = look({**payload, "timeout": 0.2})
    assert (ended.state, ended.failures) == (State.SCHEDULED, 0)
    assert ended.progress[-1][1] == "query 'q' took longer than its timeout of 0.2 s"
    queries("select pg_sleep(30)", "statement_timeout = 0.1")
    assert look(payload).progress[-1][1] == "query 'q' took longer than its statement_timeout"


def test_query_is_ended_before_the_job_s_own_time_is_over(look: Look, queries: Callable[..., None]) -> None:
    queries("select pg_sleep(30)")
    started = time.monotonic()
    ended = look({"query": {"name": "q"}, "until": {"path": "/rows", "equals": 1}}, timeout=1.5)
    assert time.monotonic() - started < 25
    assert (ended.state, ended.failures) == (State.SCHEDULED, 0)


def test_database_of_the_query_that_is_away_is_waited_past(
    look: Look, queries: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPLICA", "host=127.0.0.1 port=1 password=hidden")
    queries("select 1 as a", 'dsn_env = "REPLICA"')
    ended = look({"query": {"name": "q"}, "until": {"path": "/rows", "equals": 1}})
    assert (ended.state, ended.failures) == (State.SCHEDULED, 0)
    assert "cannot connect by REPLICA" in (ended.progress[-1][1] or "")
    assert "hidden" not in str(ended)


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("select * from no_such_table", "no_such_table"),
        ("select 1 as a, 2 as a", "2 columns named 'a'"),
        ("select repeat('x', 2000000) as a", "more than 1000000 bytes"),
        ("select nextval('dispatcher.job_id_seq')", "read-only"),
    ],
)
def test_query_that_is_wrong_fails_for_good(look: Look, queries: Callable[..., None], sql: str, said: str) -> None:
    queries(sql)
    ended = look({"query": {"name": "q"}, "until": {"path": "/rows", "at_least": 0}})
    assert ended.state is State.FAILED
    assert said in message(ended)


def test_query_of_another_name_or_host_that_is_not_allowed_fails_for_good(
    look: Look, queries: Callable[..., None], site: Site
) -> None:
    queries("select 1 as a")
    ended = look({"query": {"name": "other"}, "until": {"path": "/rows", "equals": 1}})
    assert (ended.state, "there is no query 'other'" in message(ended)) == (State.FAILED, True)
    for payload in (
        {"http": {"url": "http://127.0.0.1:1"}},
        {"json_rpc": {"url": "http://127.0.0.1:1", "method": "m"}},
    ):
        ended = look({**payload, "until": {"path": "/result", "exists": True}})
        assert ended.state is State.FAILED
        assert "may not be asked" in message(ended)
    assert site.asked == []


def test_redirect_to_a_host_that_is_not_allowed_fails_for_good(look: Look, site: Site, script: Script) -> None:
    script.say(Reply(302, b"", (("location", "http://127.0.0.1:1/"),)))
    payload = http(site)
    payload["http"]["follow_redirects"] = True
    ended = look(payload)
    assert ended.state is State.FAILED
    assert "may not be asked" in message(ended)


def test_redirect_is_followed_if_that_is_asked_for(look: Look, site: Site, script: Script) -> None:
    script.say(Reply(302, b"", (("location", "/there"),)), {"ready": True})
    payload = http(site)
    payload["http"]["follow_redirects"] = True
    assert look(payload).state is State.SUCCEEDED
    assert [asked.path for asked in site.asked] == ["/health", "/there"]


@pytest.mark.parametrize(
    ("headers", "delay_s"),
    [
        ((("retry-after", "120"),), 120),
        ((("retry-after", "2"),), 5),
        ((("retry-after", "7200"),), 3600),
        ((("retry-after", "soon"),), 5),
        ((), 5),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured_and_not_beyond_the_deadline(
    look: Look, site: Site, script: Script, headers: Any, delay_s: float, status: int
) -> None:
    script.say(Reply(status, b"slowly", headers))
    ended = look(http(site))
    assert (ended.state, ended.failures) == (State.SCHEDULED, 0)
    assert ended.delay_s == pytest.approx(delay_s, abs=5 if delay_s == 3600 else 0.001)


def test_retry_after_can_be_a_time(look: Look, site: Site, script: Script) -> None:
    at = format_datetime(datetime.now(UTC) + timedelta(minutes=5), usegmt=True)
    script.say(Reply(429, b"", (("retry-after", at),)))
    assert look(http(site)).delay_s == pytest.approx(300, abs=5)


def test_answer_without_end_is_not_read(look: Look, site: Site, script: Script) -> None:
    script.say(Reply(200, b"x" * 2_000_000))
    ended = look(http(site))
    assert ended.state is State.FAILED
    assert "more than 1000000 bytes" in message(ended)
    script.say(Reply(503, b"x" * 2_000_000))
    assert look(http(site)).state is State.SCHEDULED


@pytest.mark.parametrize(
    "body", [b'{"ready": NaN}', b'{"ready": "\\u0000"}', b"[" * 100_000, b'{"ready": 1e999}', b"\xff\0"]
)
def test_answer_that_cannot_be_stored_breaks_nothing(look: Look, site: Site, script: Script, body: bytes) -> None:
    script.say(Reply(200, body, JSON))
    assert look(http(site)).state is State.SCHEDULED
    ended = look(http(site, {"path": "/status", "equals": 200}))
    assert ended.state is State.SUCCEEDED


def test_large_answer_is_cut_in_the_result(look: Look, site: Site, script: Script) -> None:
    script.say({"ready": True, "more": "x" * 500_000})
    ended = look(http(site))
    assert ended.result["value"] is True
    assert len(ended.result["answer"]) == 64_001
    assert ended.result["answer"].startswith('{"status": 200, "body": {"ready": true')
    assert len(look(http(site, {"path": "/body/more", "exists": True})).result["value"]) == 64_001


# The deadline


def test_deadline_tells_the_last_answer_and_a_path_that_was_never_there(
    queue: Queue, site: Site, script: Script, conn: Connection
) -> None:
    script.say({"redy": True, "more": "x" * 1000})
    id = queue.enqueue("wait_until", http(site, deadline="10min"))
    run_one(queue)
    age(conn, id, "10 min")
    [ended] = queue.drain(scheduled=True)
    assert (ended.state, ended.attempt) == (State.FAILED, 2)
    said = message(ended)
    assert (
        f"GET {site.url}/health: until did not hold by the deadline (10min), in 2 looks: /body/ready is not there; "
        in said
    )
    assert 'the last answer: {"status": 200, "body": {"redy": true, "more": "xxx' in said
    assert len(said.partition("last answer: ")[2]) == 501


def test_deadline_tells_the_last_error(queue: Queue, site: Site, script: Script, conn: Connection) -> None:
    script.say(Reply(503, b"out of\nmemory"))
    id = queue.enqueue("wait_until", http(site, deadline=30))
    age(conn, id, "1 min")
    [ended] = queue.drain()
    assert message(ended).endswith(
        f"(30 s), in 1 look: GET {site.url}/health was answered with status 503: out of memory"
    )


@pytest.mark.parametrize("deadline", ["1h", "absolute"])
def test_deadline_holds_when_nobody_ran_the_job_meanwhile_and_one_look_is_left(
    queue: Queue, site: Site, script: Script, conn: Connection, deadline: str
) -> None:
    """Two jobs, three days late: one that would go on is failed, one that has come true succeeds."""
    script.say({"ready": False}, {"ready": True})
    if deadline == "absolute":
        deadline = (datetime.now(UTC) - timedelta(days=2)).isoformat()
    ids = [queue.enqueue("wait_until", http(site, deadline=deadline)) for _ in range(2)]
    for id in ids:
        age(conn, id, "3 days")
    first, second = queue.drain()
    assert (first.state, first.attempt) == (State.FAILED, 1)
    assert (second.state, second.attempt) == (State.SUCCEEDED, 1)
    assert second.result["waited_s"] == pytest.approx(3 * 86400, abs=60)


def test_time_of_a_slow_look_counts(look: Look, site: Site, script: Script) -> None:
    slow = threading.Event()
    script.say(lambda asked: Reply(503 + slow.wait(0.6)))
    assert look(http(site, deadline=0.5)).state is State.FAILED


def test_last_pause_ends_at_the_deadline(queue: Queue, site: Site, script: Script, conn: Connection) -> None:
    script.say({"ready": False})
    id = queue.enqueue("wait_until", http(site, deadline="10min", every="5min", jitter=0))
    age(conn, id, "8 min")
    run_one(queue)
    left = value(conn, "select extract(epoch from created_at + interval '10 min' - run_at) from dispatcher.job")
    assert -2 < left <= 0


def test_database_s_clock_counts_not_the_host_s(
    look: Look, site: Site, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.say({"ready": False})

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(days=1)

    monkeypatch.setattr("dispatcher_executors.wait_until.datetime", Ahead)
    monkeypatch.setattr(time, "time", lambda clock=time.time: clock() + 86400)
    assert look(http(site)).state is State.SCHEDULED


def test_progress_is_the_share_of_the_deadline_and_what_was_seen(
    queue: Queue, site: Site, script: Script, conn: Connection
) -> None:
    script.say({"ready": False})
    id = queue.enqueue("wait_until", http(site, deadline="10min"))
    age(conn, id, "6 min")
    run_one(queue)
    seen = job(conn, id)
    assert seen["progress"] == pytest.approx(60, abs=1)
    assert seen["progress_message"] == "/body/ready is false"


def test_retry_of_one_that_gave_up_looks_once_more(queue: Queue, site: Site, script: Script, conn: Connection) -> None:
    script.say({"ready": False}, {"ready": True})
    id = queue.enqueue("wait_until", http(site, deadline=30))
    age(conn, id, "1 min")
    assert [job.state for job in queue.drain()] == [State.FAILED]
    queue.client.retry(id)
    assert [job.state for job in queue.drain()] == [State.SUCCEEDED]


# Cancel


def test_cancel_between_two_looks_ends_it(queue: Queue, site: Site, script: Script, conn: Connection) -> None:
    script.say({"ready": False})
    id = queue.enqueue("wait_until", http(site))
    run_one(queue)
    queue.client.cancel(id)
    assert state(conn, id) == "canceled"
    queue.drain(scheduled=True)
    assert len(site.asked) == 1


class Silent:
    """Nobody watches; the database is that of the test."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def report_progress(self, *_: object) -> None:
        pass

    def connect(self) -> Connection:
        return psycopg.connect(self._dsn)


def canceled_once(dsn: str, payload: dict[str, Any], there: Callable[[], Any]) -> float:
    """Runs a look, cancels it once it is there, and says how long it lived on."""
    spec = wait_until.__dispatcher_executor__
    waiting = Job(7, "wait_until", None, spec.payload.model_validate(payload), 0, 1, 0, datetime.now(UTC))
    ctx = Context(waiting, timeout_s=60, runtime=Silent(dsn))  # type: ignore[arg-type]
    at: list[float] = []

    def cancel() -> None:
        there()
        at.append(time.monotonic())
        ctx.cancel(CancelReason.REQUESTED)

    canceler = threading.Thread(target=cancel)
    canceler.start()
    with pytest.raises(Interrupted):
        wait_until(waiting, ctx)
    canceler.join()
    return time.monotonic() - at[0]


def test_cancel_ends_a_request_that_hangs_at_once(dsn: str, site: Site, script: Script) -> None:
    over = threading.Event()
    script.say(lambda asked: Reply(200 + over.wait(50)))
    assert canceled_once(dsn, http(site), site.arrived.wait) < 25
    over.set()


def test_cancel_ends_a_query_that_hangs_at_once(dsn: str, conn: Connection, queries: Callable[..., None]) -> None:
    queries("select a from t")
    conn.execute("create table t (a int)")
    with open_transaction(dsn, "lock table t"):
        waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
        payload = {"query": {"name": "q"}, "until": {"path": "/rows", "equals": 1}}
        assert canceled_once(dsn, payload, lambda: until(lambda: value(conn, waits))) < 25
