"""Trouble with the database is counted each time, said once a minute, and slows down whoever has it."""

import logging

import psycopg
import pytest

from dispatcher.errors import DatabaseUnavailable
from dispatcher.metrics import Metrics
from dispatcher.trouble import FIRST_PAUSE_S, LASTING_S, LONGEST_PAUSE_S, SAY_EVERY_S, Sparing, Trouble, refused
from tests.db.contenders import Clock

FULL = psycopg.errors.DiskFull("could not extend file: No space left on device\nHINT:  Check free disk space.")
CANCELED = psycopg.errors.QueryCanceled("canceling statement due to user request")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def trouble(clock: Clock, metrics: Metrics) -> Trouble:
    return Trouble("the session", log=logging.getLogger("test"), metrics=metrics, clock=clock, chance=lambda: 1.0)


def test_an_error_that_comes_a_thousand_times_is_said_once_a_minute_with_how_many_were_not_said(
    trouble: Trouble, clock: Clock, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(1000):
        trouble.note(FULL, kept=True)
        clock.now += 0.01
    assert caplog.messages == ["the session was refused a statement: could not extend file: No space left on device"]
    clock.now += SAY_EVERY_S
    trouble.note(FULL, kept=True)
    assert len(caplog.records) == 2
    assert (vars(caplog.records[1])["kind"], vars(caplog.records[1])["suppressed"]) == ("53100", 999)
    assert metrics.registry.get_sample_value("dispatcher_db_errors_total") == 1001


def test_one_kind_of_error_hides_no_other(trouble: Trouble, caplog: pytest.LogCaptureFixture) -> None:
    for exc in (FULL, CANCELED, DatabaseUnavailable("cannot connect"), FULL):
        trouble.note(exc)
    assert [vars(record)["kind"] for record in caplog.records] == ["53100", "57014", "DatabaseUnavailable"]
    assert caplog.messages[2] == "the session is lost: cannot connect"


def test_the_pauses_grow_to_a_bound_and_begin_anew_once_it_works(trouble: Trouble) -> None:
    pauses = [trouble.note(FULL) for _ in range(20)]
    assert pauses[0] == FIRST_PAUSE_S
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE_S
    trouble.over()
    assert trouble.note(FULL) == FIRST_PAUSE_S


def test_a_success_between_two_errors_does_not_end_trouble_that_must_have_been_quiet_for_a_while(
    trouble: Trouble, clock: Clock
) -> None:
    trouble.note(FULL)
    clock.now += 1.0
    trouble.over(after_s=4.0)
    assert trouble.for_s == 1.0
    clock.now += 3.0
    trouble.over(after_s=4.0)
    assert trouble.for_s == 0.0


def test_a_hiccup_is_no_lasting_trouble(trouble: Trouble, clock: Clock) -> None:
    trouble.note(FULL)
    assert trouble.lasting is None
    clock.now += LASTING_S + 0.1
    assert trouble.lasting == "could not extend file: No space left on device"
    trouble.over()
    assert trouble.lasting is None


def test_a_request_that_is_refused_again_and_again_is_said_once(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    sparing = Sparing(logging.getLogger("test"), clock=clock)
    for _ in range(100):
        sparing.say("full", "a request was refused: %s", "full")
    assert caplog.messages == ["a request was refused: full"]


def test_a_session_that_is_gone_was_not_refused_a_statement() -> None:
    assert not refused(None, FULL)
