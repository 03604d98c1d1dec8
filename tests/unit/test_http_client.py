"""What the clients of the HTTP API send again and how they read what comes, without a server."""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest

from dispatcher import errors
from dispatcher.http import Client
from dispatcher.http.delivery import LONGEST_PAUSE_S, retry_after_s
from dispatcher.http.events import EventReader
from dispatcher.http.exchange import Answer, Request, in_path
from dispatcher.http.jobs import JobCalls
from dispatcher.http.reading import refusal
from dispatcher.queries.operation import Pause

CREATED = httpx.Response(202, json={"id": 7, "created": True})
PROBLEM = {"Content-Type": "application/problem+json"}


def problem(status: int, detail: str = "so it is", **more: Any) -> Answer:
    return Answer(status, httpx.Headers(PROBLEM), json.dumps({"detail": detail, **more}).encode())


class Server:
    """Answers from a list; an exception is raised in place of an answer."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self._answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long it would have paused."""
    pauses: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", pauses.append)
    return pauses


@pytest.fixture
def client_of(pauses: list[float]) -> Iterator[Callable[..., Client]]:
    clients: list[Client] = []

    def make(server: Server, **options: Any) -> Client:
        client = Client("http://jobs.example.com/api/", "djt_secret", **options)
        client._opened = httpx.Client(transport=httpx.MockTransport(server), **client._options())
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


LOST = httpx.ReadError("connection reset")


def test_same_key_for_each_try_and_another_for_each_call(client_of: Callable[..., Client]) -> None:
    server = Server(LOST, httpx.Response(503), httpx.Response(429), CREATED)
    client = client_of(server)
    assert client.enqueue("any", delay=5) == 7
    first = [request.headers["Idempotency-Key"] for request in server.requests]
    assert len(first) == 4
    assert len(set(first)) == 1
    assert len({request.content for request in server.requests}) == 1
    assert {str(request.url) for request in server.requests} == {"http://jobs.example.com/api/jobs"}
    client.enqueue("any", delay=5)
    assert server.requests[-1].headers["Idempotency-Key"] != first[0]


def test_tries_are_bounded(client_of: Callable[..., Client], pauses: list[float]) -> None:
    server = Server(LOST)
    with pytest.raises(errors.ApiUnavailable, match="connection reset"):
        client_of(server, retries=3).get(1)
    assert len(server.requests) == 4
    assert len(pauses) == 3
    assert all(later > earlier for earlier, later in itertools.pairwise(pauses))
    assert max(pauses) < LONGEST_PAUSE_S


def test_server_says_when(client_of: Callable[..., Client], pauses: list[float]) -> None:
    server = Server(httpx.Response(429, headers={"Retry-After": "3"}), CREATED)
    client_of(server).enqueue("any")
    assert 3 < pauses[0] < 4


def test_nobody_waits_for_hours(client_of: Callable[..., Client], pauses: list[float]) -> None:
    server = Server(httpx.Response(503, headers={"Retry-After": "7200"}))
    with pytest.raises(errors.ApiUnavailable, match="503 Service Unavailable"):
        client_of(server).enqueue("any")
    assert not pauses


def test_key_that_is_in_use_is_waited_for(client_of: Callable[..., Client]) -> None:
    busy = httpx.Response(409, headers={"Retry-After": "1", **PROBLEM}, json={"detail": "under way"})
    server = Server(busy, CREATED)
    assert client_of(server).enqueue("any") == 7
    with pytest.raises(errors.ApiUnavailable, match="under way"):
        client_of(Server(busy)).enqueue("any")


def test_refusal_is_not_sent_again(client_of: Callable[..., Client]) -> None:
    server = Server(httpx.Response(409, headers=PROBLEM, json={"detail": "x", "type": "urn:dispatcher:WrongState"}))
    with pytest.raises(errors.WrongState):
        client_of(server).cancel(1)
    assert len(server.requests) == 1


GONE = httpx.Response(404, headers=PROBLEM, json={"detail": "none", "type": "urn:dispatcher:ScheduleNotFound"})


@pytest.mark.parametrize("first", [LOST, httpx.Response(503), httpx.Response(502)])
def test_what_was_removed_by_a_try_without_an_answer_is_removed(client_of: Callable[..., Client], first: Any) -> None:
    client_of(Server(first, GONE)).remove_schedule("s")


@pytest.mark.parametrize("answers", [[GONE], [httpx.Response(429), GONE], [httpx.ConnectError("refused"), GONE]])
def test_what_never_was_cannot_be_removed(client_of: Callable[..., Client], answers: list[Any]) -> None:
    with pytest.raises(errors.ScheduleNotFound):
        client_of(Server(*answers)).remove_schedule("s")


def test_something_else_cannot_say_that_it_is_removed(client_of: Callable[..., Client]) -> None:
    with pytest.raises(errors.ApiUnavailable):
        client_of(Server(LOST, httpx.Response(404, text="<html>"))).remove_schedule("s")


def test_wrong_options_are_never_sent(client_of: Callable[..., Client]) -> None:
    server = Server(CREATED)
    client = client_of(server)
    with pytest.raises(errors.InvalidOption, match="no time zone"):
        client.enqueue("any", run_at=datetime(2030, 1, 1))  # noqa: DTZ001 - that is the point
    with pytest.raises(errors.InvalidSchedule):
        client.add_schedule("s", "nonsense", "any")
    assert not server.requests


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>"),
        httpx.Response(200, json=[]),
        httpx.Response(200, json={"id": 1}),
        httpx.Response(302, headers={"Location": "https://login.example.com"}),
        httpx.Response(404, text="<html>"),
        httpx.Response(500, headers=PROBLEM, json={"detail": "an error that should not occur"}),
    ],
)
def test_answer_of_something_else_is_one_line(client_of: Callable[..., Client], answer: httpx.Response) -> None:
    with pytest.raises(errors.ApiUnavailable) as told:
        client_of(Server(answer)).get(1)
    assert "\n" not in str(told.value)


def test_page_in_place_of_events(client_of: Callable[..., Client]) -> None:
    with pytest.raises(errors.ApiUnavailable):
        next(client_of(Server(httpx.Response(200, text="<html>"))).events(1))


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (problem(404, type="urn:dispatcher:JobNotFound"), errors.JobNotFound),
        (problem(422, type="urn:dispatcher:UnknownType"), errors.UnknownType),
        (problem(503, type="urn:dispatcher:DatabaseUnavailable"), errors.DatabaseUnavailable),
        (problem(418, type="urn:dispatcher:GRANT_HINT"), errors.ApiUnavailable),
        (problem(418, type="urn:dispatcher:annotations"), errors.ApiUnavailable),
        (problem(401), errors.AccessDenied),
        (problem(403), errors.AccessDenied),
        (problem(413), errors.PayloadTooLarge),
        (problem(429), errors.TooManyJobs),
        (problem(422), errors.InvalidOption),
        (problem(422, errors=[{"loc": ["body", "delay"]}]), errors.InvalidOption),
        (problem(422, errors=[{"loc": ["body", 3, "payload"]}]), errors.InvalidPayload),
        (problem(422, errors=[{"loc": ["body", "callback", "type"]}]), errors.UnknownType),
        (problem(422, errors=[{"loc": ["path", "id"]}]), errors.JobNotFound),
        (problem(422, errors="nonsense"), errors.InvalidOption),
        (Answer(404, httpx.Headers(PROBLEM), b"[]"), errors.ApiUnavailable),
        (Answer(999, {}), errors.ApiUnavailable),
    ],
)
def test_problem_is_the_error_that_it_names(answer: Answer, kind: type[Exception]) -> None:
    assert type(refusal(answer)) is kind


def test_error_is_one_line() -> None:
    assert str(refusal(problem(422, "two\nlines"))) == "two lines"


@pytest.mark.parametrize(
    ("told", "line"),
    [
        (problem(422, "job 1: too bad", type="urn:dispatcher:InvalidPayload"), "payload 2: too bad"),
        (problem(422, "1.payload: bad", errors=[{"loc": ["body", 1, "payload"]}]), "payload 2: payload: bad"),
        (problem(422, "job 0: there is no type", type="urn:dispatcher:UnknownType"), "there is no type"),
        (problem(422, "give 1 to 10", type="about:blank"), "give 1 to 10"),
    ],
)
def test_payloads_are_counted_from_1(told: Answer, line: str) -> None:
    call = JobCalls().enqueue_many("any", [{}, {}], {})
    next(call)
    with pytest.raises(errors.EnqueueError) as raised:
        call.send(told)
    assert str(raised.value) == line


JOB = {
    "id": 1, "type": "any", "tenant": None, "state": "pending", "priority": 0, "payload": {}, "progress": 0,
    "progress_message": None, "result": None, "result_url": None, "errors": [], "attempt": 0, "failures": 0,
    "max_attempts": 5, "timeout": None, "unique_key": None, "created_at": "2030-01-01T00:00:00.000001Z",
    "run_at": "2030-01-01T00:00:00Z", "started_at": None, "finished_at": None, "owner": None,
    "cancel_requested": False, "timed_out": False, "parent_id": None, "of_a_newer_server": 1,
}  # fmt: skip


def test_server_that_does_not_wait_is_not_asked_all_the_time() -> None:
    now = [0.0]
    call = JobCalls(lambda: now[0]).wait([1], 60)
    look = Answer(200, {}, json.dumps(JOB).encode())
    assert next(call) == Request.get("/jobs/1")
    poll = call.send(look)
    assert isinstance(poll, Request)
    assert poll.params == (("wait", "25000ms"),)
    assert isinstance(call.send(look), Pause)
    now[0] = 59.5
    assert call.send(look) == Request.get("/jobs/1", [("wait", "500ms")], wait_s=0.5, patience_s=0.5)
    now[0] = 60.0
    with pytest.raises(TimeoutError, match="job 1 has not ended in time"):
        call.send(look)


def test_events_are_read_line_by_line() -> None:
    reader = EventReader(1)
    lines = ["retry: 250", "", ": still here", "", "event: state", "id: a", 'data: {"state":', 'data: "running"}']
    assert [reader.take(line) for line in lines] == [None] * len(lines)
    assert reader.take("") == ("state", {"state": "running"})
    assert reader.pause_s == 0.25
    assert not reader.over
    reader.take("event: progress")  # and the connection is lost
    assert reader.request().headers["Last-Event-ID"] == "a"
    reader.take('data: {"state": "failed"}')
    assert reader.take("") == ("message", {"state": "failed"})
    assert reader.over


def test_event_that_is_none() -> None:
    reader = EventReader(1)
    reader.take("data: nonsense")
    with pytest.raises(errors.ApiUnavailable):
        reader.take("")


@pytest.mark.parametrize(("name", "path"), [("a/b", "a/b"), ("../x", "%2E%2E/x"), ("a b?#%", "a%20b%3F%23%25")])
def test_names_stay_within_their_path(name: str, path: str) -> None:
    assert in_path(name) == path


def test_extra_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("dispatcher.http")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(ImportError, match=r"pg-dispatcher\[http\]"):
        importlib.import_module("dispatcher.http")


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after_s({"Retry-After": "7"}) == 7
    assert retry_after_s({}) == retry_after_s({"Retry-After": "soon"}) == retry_after_s({"Retry-After": "-3"}) == 0
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 25 < retry_after_s({"Retry-After": date}) <= 30
