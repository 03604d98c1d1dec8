"""Whatever a replica writes of an attempt finds no row once that attempt is not the running one, or not its own.

Each part of that guard by itself: the attempt, the owner, the state.
"""

from __future__ import annotations

from collections.abc import Callable, Sized

import pytest

from dispatcher.db import Connection
from dispatcher.job import Job
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
