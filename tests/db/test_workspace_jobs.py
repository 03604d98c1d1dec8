"""Workspaces and sessions as jobs of a queue: a session waits for its workspace; no secret in a row or message."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from dispatcher_executors import session_init, workspace_init

from dispatcher.errors import InvalidPayload
from dispatcher.job import State
from dispatcher.testing import Queue

Connection = psycopg.Connection[Any]


@pytest.fixture
def queue(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    for name in ("root", "templates/web"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "templates" / "web" / "file").write_text("x")
    monkeypatch.setenv("DISPATCHER_WORKSPACES", str(tmp_path / "root"))
    monkeypatch.setenv("DISPATCHER_TEMPLATES", str(tmp_path / "templates"))
    monkeypatch.delenv("DISPATCHER_GIT_URLS", raising=False)
    with Queue(dsn, [workspace_init, session_init]) as queue:
        yield queue


def test_session_waits_until_its_workspace_is_ready(queue: Queue, tmp_path: Path) -> None:
    made = queue.enqueue("workspace_init", {"workspace": "ws", "template": "web"}, delay=3600)
    session = queue.enqueue("session_init", {"workspace": "ws", "session": "s"}, after=made, priority=-10)
    assert queue.drain() == []
    assert queue.client.get(session).state is State.BLOCKED
    assert [job.id for job in queue.drain(scheduled=True)] == [made, session]
    assert queue.client.get(session).state is State.SUCCEEDED
    assert (tmp_path / "root" / "ws" / "sessions" / "s" / "file").read_text() == "x"


def test_session_of_a_workspace_that_failed_is_canceled(queue: Queue, tmp_path: Path) -> None:
    made = queue.enqueue("workspace_init", {"workspace": "ws", "template": "missing"})
    session = queue.enqueue("session_init", {"workspace": "ws", "session": "s"}, after=made)
    queue.drain()
    assert queue.client.get(made).state is State.FAILED
    assert queue.client.get(session).state is State.CANCELED
    assert not (tmp_path / "root" / "ws").exists()


def test_password_reaches_neither_message_nor_errors(queue: Queue, conn: Connection) -> None:
    payload = {"workspace": "ws", "git": {"url": "https://me:hunter2@git.local/app"}}
    with pytest.raises(InvalidPayload) as caught:
        queue.enqueue("workspace_init", payload)
    assert "must not contain a user or password" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    # SQL knows the model's shape alone; it is checked again before it runs.
    conn.execute("select dispatcher.enqueue('workspace_init', %s::jsonb)", [json.dumps(payload)])
    (job,) = queue.drain()
    assert job.state is State.FAILED
    assert "must not contain a user or password" in str(job.errors)
    assert "hunter2" not in str(job.errors)
