"""What becomes of a job, decided without I/O; and texts that PostgreSQL can store."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.context import Interrupted
from dispatcher.executor import Cancel, Fail, Partial, Retry, Snooze
from dispatcher.job import CancelReason, Job, State
from dispatcher.outcome import (
    MAX_MESSAGE,
    MAX_TRACE,
    JobError,
    Outcome,
    Raised,
    Returned,
    crashed,
    describe,
    encode,
    settle,
    storable,
)
from dispatcher.retry import Backoff, RetryPolicy

POLICY = RetryPolicy(max_attempts=3, backoff=Backoff(initial_s=10.0, jitter=0.0))


def a_job(failures: int = 0) -> Job:
    return Job(7, "quick", None, {}, 0, failures + 1, failures, datetime(2030, 1, 1, tzinfo=UTC))


def end(
    ending: Returned | Raised,
    reason: CancelReason | None = None,
    *,
    failures: int = 0,
    max_attempts: int | None = None,
    policy: RetryPolicy = POLICY,
) -> Outcome:
    outcome = settle(a_job(failures), ending, reason, policy=policy, max_attempts=max_attempts)
    assert (outcome.job_id, outcome.attempt) == (7, failures + 1)
    return outcome


def error(outcome: Outcome) -> dict[str, Any]:
    assert outcome.errors is not None
    (entry,) = json.loads(outcome.errors)
    assert isinstance(entry, dict)
    return entry


def test_returned_value_is_the_result() -> None:
    outcome = end(Returned({"ä": [1, None]}))
    assert (outcome.state, outcome.result, outcome.errors, outcome.failures) == (
        State.SUCCEEDED,
        '{"ä": [1, null]}',
        None,
        0,
    )
    assert end(Returned(None)).result is None


def test_exception_is_tried_again_until_the_tries_are_used_up() -> None:
    states = [end(Raised(ValueError("no")), failures=n).state for n in (0, 1, 2, 3)]
    assert states == [State.SCHEDULED, State.SCHEDULED, State.FAILED, State.FAILED]
    first = end(Raised(ValueError("no")))
    assert (first.delay_s, first.failures, error(first)["message"]) == (10.0, 1, "ValueError: no")
    assert "test_outcome" not in error(first)["message"]
    assert "ValueError: no" in error(first)["trace"]


def test_job_s_own_number_of_tries_goes_over_the_type_s() -> None:
    assert end(Raised(ValueError()), max_attempts=1).state is State.FAILED
    assert end(Raised(ValueError()), failures=5, max_attempts=7).state is State.SCHEDULED


@pytest.mark.parametrize("exc", [SystemExit(1), KeyboardInterrupt(), GeneratorExit(), BaseException("odd")])
def test_base_exception_is_a_failure_like_any_other(exc: BaseException) -> None:
    outcome = end(Raised(exc))
    assert outcome.state is State.SCHEDULED
    assert type(exc).__name__ in error(outcome)["message"]


def test_ways_to_end() -> None:
    assert end(Raised(Cancel())).state is State.CANCELED
    fail = end(Raised(Fail("bad file")))
    assert (fail.state, error(fail)["kind"], error(fail)["message"]) == (State.FAILED, "fail", "bad file")
    retry = end(Raised(Retry(42)))
    assert (retry.state, retry.delay_s, retry.failures) == (State.SCHEDULED, 42.0, 1)
    assert end(Raised(Retry(42)), failures=2).state is State.FAILED
    snooze = end(Raised(Snooze(42)), failures=2)
    assert (snooze.state, snooze.delay_s, snooze.failures, snooze.errors) == (State.SCHEDULED, 42.0, 0, None)
    partial = end(Returned(Partial({"rows": 3}, [{"message": "bad", "item": 17}])))
    assert (partial.state, partial.result) == (State.PARTIAL, '{"rows": 3}')
    assert error(partial) == {"kind": "item", "message": "bad", "item": 17}


@pytest.mark.parametrize("after", [-5.0, math.nan, -math.inf])
def test_pause_is_never_negative(after: float) -> None:
    assert end(Raised(Retry(after))).delay_s == 0.0
    assert end(Raised(Snooze(after))).delay_s == 0.0


@pytest.mark.parametrize("after", [1e300, math.inf])
def test_pause_ends_within_the_calendar(after: float) -> None:
    for way in (Retry(after), Snooze(after)):
        delay = end(Raised(way)).delay_s
        assert delay is not None
        assert delay <= 100 * 366 * 86400


@pytest.mark.parametrize("reason", [CancelReason.SHUTDOWN, CancelReason.LOST])
def test_interruption_uses_up_no_try(reason: CancelReason) -> None:
    for exc in (Interrupted(reason), ValueError("in the middle"), SystemExit()):
        outcome = end(Raised(exc), reason, failures=2)
        assert (outcome.state, outcome.failures, outcome.errors) == (State.PENDING, 0, None)


@pytest.mark.parametrize("reason", [CancelReason.SHUTDOWN, CancelReason.LOST])
def test_what_a_job_says_of_itself_counts_though_it_was_asked_to_stop(reason: CancelReason) -> None:
    """It would only say so again in its next try."""
    assert end(Raised(Fail("for good")), reason).state is State.FAILED
    assert (end(Raised(Snooze(60)), reason).delay_s, end(Raised(Retry(60)), reason).failures) == (60, 1)


def test_job_that_was_asked_to_stop_and_succeeded_has_succeeded() -> None:
    for reason in (CancelReason.REQUESTED, CancelReason.SHUTDOWN, CancelReason.LOST):
        assert end(Returned(1), reason).state is State.SUCCEEDED


def test_canceled_job_that_raises_is_canceled() -> None:
    for exc in (Interrupted(CancelReason.REQUESTED), ValueError()):
        assert end(Raised(exc), CancelReason.REQUESTED).state is State.CANCELED


def test_timed_out_job_fails_for_good_unless_the_type_says_otherwise() -> None:
    for ending in (Raised(Interrupted(CancelReason.TIMEOUT)), Returned("too late"), Raised(ValueError())):
        outcome = end(ending, CancelReason.TIMEOUT)
        assert (outcome.state, outcome.result, error(outcome)["kind"]) == (State.FAILED, None, "timeout")
    patient = RetryPolicy(max_attempts=2, retry_timeouts=True)
    assert end(Returned(1), CancelReason.TIMEOUT, policy=patient).state is State.SCHEDULED
    assert end(Returned(1), CancelReason.TIMEOUT, policy=patient, failures=1).state is State.FAILED


def test_crash_counts_as_a_failure() -> None:
    def crash(failures: int) -> Outcome:
        return crashed(a_job(failures), policy=POLICY, max_attempts=None, chance=0.5, message="gone")

    assert [crash(n).state for n in (0, 1, 2)] == [State.SCHEDULED, State.SCHEDULED, State.FAILED]
    assert error(crash(0))["kind"] == "crash"


# Results that are no JSON.


def cycle() -> Any:
    inner: list[Any] = []
    inner.append(inner)
    return inner


def deep() -> Any:
    value: Any = []
    for _ in range(100_000):
        value = [value]
    return value


class Hostile(dict[str, Any]):
    def items(self) -> Any:
        raise KeyError("no items")


NOT_JSON: dict[str, Callable[[], Any]] = {
    "object": object,
    "bytes": lambda: b"x",
    "set": lambda: {1},
    "nan": lambda: math.nan,
    "infinity": lambda: [1, math.inf],
    "cycle": cycle,
    "depth": deep,
    "NUL": lambda: "a\x00b",
    "NUL in a key": lambda: {"a\x00": 1},
    "half a surrogate pair": lambda: "\ud800",
    "key that is no text": lambda: {(1, 2): 3},
    "huge integer": lambda: 10**10_000,
    "hostile": lambda: Hostile(a=1),
}


@pytest.mark.parametrize("make", NOT_JSON.values(), ids=NOT_JSON)
def test_result_that_is_not_json_fails_the_job_at_once(make: Callable[[], Any]) -> None:
    for value in (make(), Partial(make(), []), Partial(None, [{"message": "m", "item": make()}])):
        outcome = end(Returned(value))
        assert outcome.state is State.FAILED
        assert error(outcome)["kind"] == "result"


def test_partial_s_errors_must_be_objects() -> None:
    for errors in (["text"], [None], 5, None, [{"message": object()}]):
        outcome = end(Returned(Partial(1, errors)))  # type: ignore[arg-type]
        assert outcome.state in {State.FAILED, State.PARTIAL}
        assert outcome.errors is not None


def test_partial_s_message_is_made_storable() -> None:
    """A bad row of a file may hold anything; its text must not cost the result of all the good ones."""
    outcome = end(Returned(Partial({"rows": 5}, [{"message": "row \x00 \udcff", "item": 3}])))
    assert outcome.state is State.PARTIAL
    assert error(outcome)["message"] == "row \\x00 \\udcff"


def test_partial_s_message_is_cut_as_any_error_s() -> None:
    outcome = end(Returned(Partial(None, [{"message": "x" * 10**6}])))
    assert len(error(outcome)["message"]) == MAX_MESSAGE


@pytest.mark.parametrize("text", ["\\u0000", "\\\\u0000", "a\\", "\\\\\\u0000", "u0000"])
def test_backslashes_are_not_taken_for_nul(text: str) -> None:
    assert json.loads(encode(text)) == text


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(values)
def test_what_is_encoded_reads_back_and_what_is_refused_says_why(value: Any) -> None:
    try:
        text = encode(value)
    except ValueError as exc:
        assert "NUL" in str(exc) or "surrogate" in str(exc)  # noqa: PT017 - either way out is right
        return
    assert json.loads(text) == value
    text.encode()


# Errors.


@given(st.text(st.characters(codec=None, exclude_categories=[])))
def test_any_error_text_can_be_stored(text: str) -> None:
    for exc in (ValueError(text), Fail(text), Retry(1, text)):
        outcome = end(Raised(exc))
        assert outcome.errors is not None
        outcome.errors.encode()
        assert "\\u0000" not in outcome.errors.replace("\\\\", "")
        json.loads(outcome.errors)


def test_ordinary_text_is_kept_as_it_is() -> None:
    text = "Ünïcode 🎉 \\x00 \\u0000 'quoted' \"double\"\nline\ttab"
    assert storable(text) == text
    assert error(end(Raised(Fail(text))))["message"] == text


def test_megabytes_of_error_are_cut() -> None:
    def recurse(n: int) -> None:
        if n:
            recurse(n - 1)
        raise ValueError("x" * 5_000_000)

    with pytest.raises(ValueError, match="xxx") as caught:
        recurse(50)
    entry = error(end(Raised(caught.value)))
    assert len(entry["message"]) <= MAX_MESSAGE
    assert len(entry["trace"]) <= MAX_TRACE


def test_recursion_error_is_described() -> None:
    def recurse() -> None:
        recurse()

    with pytest.raises(RecursionError) as caught:
        recurse()
    assert "RecursionError" in describe(caught.value).message


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class Exiting(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class Bare(Retry):
    def __init__(self) -> None:
        pass  # forgets the pause


class SpeechlessFail(Fail):
    __str__ = Speechless.__str__


@pytest.mark.parametrize(
    "exc", [Speechless(), Exiting(), Bare(), SpeechlessFail()], ids=["str", "exit", "after", "fail"]
)
def test_exception_that_cannot_be_read_still_ends_its_job(exc: Exception) -> None:
    """What settle() raised would kill the worker thread, and leave the job running for ever."""
    outcome = end(Raised(exc))
    assert outcome.state in {State.SCHEDULED, State.FAILED}
    assert error(outcome)["kind"] in {"exception", "retry", "fail"}


def test_cause_and_stack_are_kept() -> None:
    try:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise Fail("outer") from inner
    except Fail as exc:
        outcome = end(Raised(exc))
    assert "inner" in error(outcome)["trace"]
    timed_out = settle(
        a_job(), Raised(Interrupted(CancelReason.TIMEOUT)), CancelReason.TIMEOUT, policy=POLICY, stack="in f()"
    )
    assert error(timed_out)["trace"] == "in f()"


def test_job_error_is_an_array_of_one() -> None:
    entry = JobError("kind", "message", item={"line": 17}).as_json_array()
    assert json.loads(entry) == [{"kind": "kind", "message": "message", "item": {"line": 17}}]
