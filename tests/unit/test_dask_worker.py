"""What runs on a Dask worker, without Dask: an attempt lives only as long as its owner said, and begins once."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

from dispatcher.fence import boottime
from dispatcher.job import State
from dispatcher.pools import dask_worker
from dispatcher.pools.dask_worker import Ended, Task, Word, attend, guard
from dispatcher.pools.messages import Order
from tests import far_jobs
from tests.pooling import Pooling


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    while dask_worker._warm:
        dask_worker._warm.pop()[1].close()
    dask_worker._alive_until.clear()
    dask_worker._closed.clear()


ids = iter(range(1, 1000))


def task(executor: Any, /, *, owner: str = "me", life_s: float = 60.0, **payload: Any) -> Task:
    execution = Pooling.make(Pooling.__new__(Pooling), executor, id=next(ids), **payload)
    return Task(
        owner=owner,
        nonce=dask_worker._nonce,
        alive_until=boottime() + life_s,
        order=Order(execution.claimed, execution.executor.source, 60.0),
        installation=UUID(int=0),
        replica=1,
        max_result_bytes=2**20,
        log_level=logging.INFO,
        kill_after_s=0.2,
    )


def test_a_word_by_the_clock_of_another_process_lets_nothing_live() -> None:
    """The machine was restarted, or another one has taken the address: its clock shows another time."""
    attend(Word(owner="me", nonce="another", alive_until=boottime() + 1e6, cancel=[], revoke=[]))
    assert guard(task(far_jobs.echo, life_s=-1.0, text="")).refused is not None
    attend(Word(owner="me", nonce=dask_worker._nonce, alive_until=boottime() + 60, cancel=[], revoke=[]))
    assert guard(task(far_jobs.echo, life_s=-1.0, text="")).outcome is not None


def test_an_attempt_that_is_given_twice_runs_once() -> None:
    given = task(far_jobs.echo, text="one")
    first = guard(given)
    assert first.outcome is not None
    assert json.loads(first.outcome.result or "")["text"] == "one"
    assert guard(given).refused is not None


def test_what_an_attempt_has_left_is_gone_before_it_is_buried() -> None:
    given = task(far_jobs.leave, what="child")
    ended: list[Ended] = []
    thread = threading.Thread(target=lambda: ended.append(guard(given)))
    thread.start()
    thread.join(30)
    (one,) = ended
    assert one.outcome is not None
    assert one.outcome.state is State.SUCCEEDED
    assert not far_jobs.runs(json.loads(one.outcome.result or ""))


def test_settings_that_cannot_be_read_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPATCHER_THREADS", "many")
    assert "threads" in (guard(task(far_jobs.echo, text="")).unable or "")


def test_a_process_that_ends_as_it_starts_is_no_endless_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPATCHER_RESULT_STORE", "nowhere://at.all")
    ended = guard(task(far_jobs.echo, text=""))
    assert ended.unable is not None
    assert ended.refused is None
