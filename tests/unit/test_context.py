"""What an executor is given."""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime
from typing import Any

import pytest

from dispatcher.context import Context, Interrupted
from dispatcher.job import CancelReason, Job
from dispatcher.runtime import JobRuntime

JOB = Job(7, "quick", None, {}, 0, 3, 1, datetime(2030, 1, 1, tzinfo=UTC))


class Noted(JobRuntime):
    """The daemon's runtime with its notes kept here."""

    def __init__(self) -> None:
        super().__init__(dsn="", installation=None, owner=1)  # type: ignore[arg-type]
        self.notes: list[tuple[int, int, float, str | None]] = []
        self.progress = lambda *note: self.notes.append(note)


@pytest.fixture
def runtime() -> Noted:
    return Noted()


@pytest.fixture
def ctx(runtime: Noted) -> Context:
    return Context(JOB, timeout_s=30.0, runtime=runtime, clock=lambda: 1000.0)


def test_attempt_and_deadline(ctx: Context, runtime: Noted) -> None:
    assert (ctx.attempt, ctx.deadline) == (3, 1030.0)
    assert Context(JOB, timeout_s=None, runtime=runtime).deadline is None


def test_first_reason_stays(ctx: Context) -> None:
    assert ctx.canceled is None
    ctx.raise_if_canceled()
    ctx.cancel(CancelReason.TIMEOUT)
    ctx.cancel(CancelReason.SHUTDOWN)
    assert ctx.canceled is CancelReason.TIMEOUT
    with pytest.raises(Interrupted, match="timeout"):
        ctx.raise_if_canceled()


def test_except_exception_lets_the_interruption_pass(ctx: Context) -> None:
    ctx.cancel(CancelReason.REQUESTED)

    def stubborn() -> None:
        try:
            ctx.raise_if_canceled()
        except Exception:  # noqa: BLE001 - what careless executors do
            pytest.fail("swallowed")

    with pytest.raises(Interrupted):
        stubborn()


def test_sleeper_wakes_at_once(ctx: Context) -> None:
    ended: list[BaseException] = []

    def sleep() -> None:
        try:
            ctx.sleep(60)
        except Interrupted as exc:
            ended.append(exc)

    sleepers = [threading.Thread(target=sleep) for _ in range(3)]
    for sleeper in sleepers:
        sleeper.start()
    ctx.cancel(CancelReason.SHUTDOWN)
    for sleeper in sleepers:
        sleeper.join(5)
    assert len(ended) == 3
    with pytest.raises(Interrupted):
        ctx.sleep(60)  # and who comes later does not sleep at all


def test_sleep_without_a_cancel_just_ends(ctx: Context) -> None:
    ctx.sleep(0.001)


def test_callbacks_are_called_once_and_a_bad_one_harms_no_other(ctx: Context, caplog: pytest.LogCaptureFixture) -> None:
    called: list[str] = []

    def bad() -> None:
        raise RuntimeError("bad callback")

    ctx.on_cancel(lambda: called.append("first"))
    ctx.on_cancel(bad)
    ctx.on_cancel(lambda: called.append("last"))
    with caplog.at_level(logging.ERROR):
        ctx.cancel(CancelReason.REQUESTED)
        for thread in threading.enumerate():  # whoever cancels does not wait for callbacks: they have a thread
            if thread.name.startswith("cancel "):
                thread.join()
    ctx.cancel(CancelReason.REQUESTED)
    assert called == ["first", "last"]
    assert "a cancel callback failed" in caplog.text
    ctx.on_cancel(lambda: called.append("late"))
    assert called == ["first", "last", "late"]


@pytest.mark.parametrize(
    ("given", "noted"),
    [(-5, 0.0), (50, 50.0), (1e9, 100.0), (float("nan"), 0.0), (float("inf"), 100.0), (1e-50, 0.0), (5e-324, 0.0)],
)
def test_progress_stays_within_0_and_100(ctx: Context, runtime: Noted, given: float, noted: float) -> None:
    ctx.progress(given)
    assert runtime.notes == [(7, 3, noted, None)]


@pytest.mark.parametrize(
    ("given", "noted"),
    [("ä🎉", "ä🎉"), ("a\x00b", "a\\x00b"), ("\ud800", "\\ud800"), (17, "17"), ("x" * 10**6, "x" * 10_000)],
)
def test_progress_message_can_be_written(ctx: Context, runtime: Noted, given: Any, noted: str) -> None:
    """It is written in a group with other jobs': one that cannot be stored would be everybody's error."""
    ctx.progress(1, given)
    assert runtime.notes[0][3] == noted


@pytest.mark.parametrize("given", ["half", None, object()])
def test_progress_that_is_no_number_is_the_executor_s_own_error(ctx: Context, runtime: Noted, given: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        ctx.progress(given)
    assert not runtime.notes


def test_logger_names_the_job(ctx: Context, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        ctx.logger.info("hello", extra={"rows": 5})
    (record,) = caplog.records
    assert (vars(record)["job_id"], vars(record)["attempt"], vars(record)["rows"]) == (7, 3, 5)
