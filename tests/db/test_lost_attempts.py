"""Whatever a replica writes of an attempt finds no row once that attempt is not the running one, or not its own.

Each part of that guard by itself: the attempt, the owner, the state.
"""

from __future__ import annotations

from collections.abc import Callable, Sized

import pytest

from dispatcher.db import Connection
from dispatcher.job import FINAL, Job
from dispatcher.outcome import JobError, Outcome
from dispatcher.queries import claims, outcomes
from tests.db.running import OWNER, as_job, claim, enqueue, value

ERROR = JobError("exception", "ValueError: late")

WRITES: dict[str, Callable[[Connection, Job], Sized]] = {
    "finish plain": lambda c, j: outcomes.finish_jobs(c, OWNER, [Outcome.succeeded(j, None)], free_only=False),
    "finish": lambda c, j: outcomes.finish_jobs(c, OWNER, [Outcome.succeeded(j, '"late"')], free_only=False),
    "finish free": lambda c, j: outcomes.finish_jobs(c, OWNER, [Outcome.failed(j, ERROR)], free_only=True),
    "reschedule": lambda c, j: outcomes.reschedule_jobs(c, OWNER, [Outcome.retry(j, 5.0, ERROR)]),
    "postpone": lambda c, j: outcomes.postpone_jobs(c, OWNER, [(j.id, j.attempt)], 3.0),
    "release": lambda c, j: claims.release_jobs(c, OWNER, [(j.id, j.attempt)]),
    "mark timed out": lambda c, j: outcomes.mark_timed_out(c, OWNER, {(j.id, j.attempt): ERROR.as_json_array()}),
    "progress": lambda c, j: outcomes.write_progress(c, OWNER, {(j.id, j.attempt): (50.0, "late")}),
    "list still running": lambda c, j: outcomes.list_still_running(c, OWNER, [(j.id, j.attempt)]),
}

LOSSES = {
    # The same replica may have it again while the thread of the older attempt is not back.
    "claimed again": "update dispatcher.job set attempt = attempt + 1",
    # A promoted server that has lost the claim gives its number out again.
    "another's": "update dispatcher.job set owner = 2",
    "put back": "update dispatcher.job set state = 'pending'",
    "ended": "update dispatcher.job set state = 'canceled', finished_at = now()",
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_what_is_written_of_a_lost_attempt_finds_no_row(
    conn: Connection, lease: Connection, write: Callable[[Connection, Job], Sized], loss: str
) -> None:
    id = enqueue(conn)
    (late,) = claim(lease)
    conn.execute(loss.encode())
    row = "select (j.xmin, j.*)::text from dispatcher.job j where j.id = %s"  # with the transaction that wrote it last
    before = value(conn, row, id)
    assert len(write(lease, as_job(late))) == 0
    assert value(conn, row, id) == before


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES.keys())
def test_what_is_written_of_a_running_attempt_finds_its_row(
    conn: Connection, lease: Connection, write: Callable[[Connection, Job], Sized]
) -> None:
    enqueue(conn)
    (running,) = claim(lease)
    assert len(write(lease, as_job(running))) == 1


@pytest.mark.parametrize("free_only", [True, False])
def test_each_claim_gives_out_a_number_of_its_own(conn: Connection, lease: Connection, free_only: bool) -> None:
    enqueue(conn)
    for attempt in (1, 2, 3):
        (claimed,) = claim(lease, free_only=free_only)
        assert claimed.attempt == attempt
        conn.execute("update dispatcher.job set state = 'pending'")
        assert value(conn, "select attempt from dispatcher.job") == attempt


RECORDED: dict[str, Callable[[Job], Outcome]] = {
    "success": lambda j: Outcome.succeeded(j, None),
    "failure": lambda j: Outcome.failed(j, ERROR),
    "snooze": lambda j: Outcome.snooze(j, 60.0),
}


def end(conn: Connection, owner: int, outcome: Outcome) -> None:
    """Records it as the completer of that owner does."""
    if outcome.state in FINAL:
        outcomes.finish_jobs(conn, owner, [outcome], free_only=False)
    else:
        outcomes.reschedule_jobs(conn, owner, [outcome])


@pytest.mark.parametrize("outcome", RECORDED.values(), ids=RECORDED.keys())
def test_an_end_whose_answer_was_lost_is_known_by_its_row(
    conn: Connection, lease: Connection, outcome: Callable[[Job], Outcome]
) -> None:
    enqueue(conn)
    (claimed,) = claim(lease)
    ended = outcome(as_job(claimed))
    assert outcomes.list_recorded(lease, OWNER, [ended]) == set()
    end(lease, OWNER, ended)
    assert outcomes.list_recorded(lease, OWNER, [ended]) == {(claimed.id, claimed.attempt)}


@pytest.mark.parametrize("outcome", RECORDED.values(), ids=RECORDED.keys())
def test_the_same_end_of_the_next_attempt_is_not_that_of_a_lost_one(
    conn: Connection, lease: Connection, outcome: Callable[[Job], Outcome]
) -> None:
    enqueue(conn)
    (lost,) = claim(lease)
    conn.execute("update dispatcher.job set state = 'pending'")  # its session was lost before the outcome was sent
    (fresh,) = claim(lease)
    end(lease, OWNER, outcome(as_job(fresh)))
    assert outcomes.list_recorded(lease, OWNER, [outcome(as_job(lost))]) == set()


def test_the_same_end_of_an_attempt_whose_number_was_given_out_again_is_its_new_owners(
    conn: Connection, lease: Connection
) -> None:
    enqueue(conn)
    (lost,) = claim(lease)
    conn.execute("update dispatcher.job set owner = 2")
    ended = Outcome.succeeded(as_job(lost), None)
    end(lease, 2, ended)
    assert outcomes.list_recorded(lease, 2, [ended]) == {(lost.id, lost.attempt)}
    assert outcomes.list_recorded(lease, OWNER, [ended]) == set()
