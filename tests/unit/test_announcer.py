"""When replicas tell of jobs, and in what words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest

from dispatcher.announcer import MAX_IDS, MAX_PAYLOAD, WATCHED_FOR_S, Announcer, payloads
from dispatcher.db import Connection
from dispatcher.metrics import Metrics

NO_SESSION = cast(Connection, None)  # whoever used it would fail


class Clock:
    """Turned by the test."""

    def __init__(self) -> None:
        self.now = 0.0  # as on a machine that has just been booted

    def __call__(self) -> float:
        return self.now


def test_nothing_is_told_before_somebody_watches() -> None:
    announcer = Announcer(metrics=Metrics(), clock=Clock())
    assert not announcer.wanted


def test_window_ends_unless_somebody_asks_again() -> None:
    clock = Clock()
    announcer = Announcer(metrics=Metrics(), clock=clock)
    announcer.heard()
    assert announcer.wanted
    clock.now += WATCHED_FOR_S - 0.1
    assert announcer.wanted
    announcer.heard()
    clock.now += WATCHED_FOR_S - 0.1
    assert announcer.wanted
    clock.now += 0.2
    assert not announcer.wanted
    announcer.heard()
    assert announcer.wanted


def test_ids_are_not_even_looked_at_while_nobody_watches() -> None:
    def ids() -> Iterator[int]:
        raise AssertionError("a step for each job")
        yield

    Announcer(metrics=Metrics(), clock=Clock()).tell(NO_SESSION, ids())


def test_without_a_job_nothing_is_sent() -> None:
    announcer = Announcer(metrics=Metrics(), clock=Clock())
    announcer.heard()
    announcer.tell(NO_SESSION, [])
    assert payloads([]) == []


@pytest.mark.parametrize("first", [1, 9_500, 10**12, 2**63 - 1 - MAX_IDS])
@pytest.mark.parametrize("count", [1, 2, 400, 1000, MAX_IDS])
def test_payloads_hold_every_id_once_and_fit(first: int, count: int) -> None:
    ids = list(range(first, first + count))
    texts = payloads(ids)
    assert [int(id) for text in texts for id in text.split(",")] == ids
    assert max(map(len, texts)) <= MAX_PAYLOAD
    assert len(texts) <= 1 + sum(len(text) for text in texts) // (MAX_PAYLOAD // 2), "needlessly many"


def test_ids_past_counting_are_told_in_one_word() -> None:
    assert payloads(range(MAX_IDS + 1)) == ["*"]
