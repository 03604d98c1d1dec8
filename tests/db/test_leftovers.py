"""What a replica that ends writes of the jobs that it still has."""

from __future__ import annotations

from typing import cast

from dispatcher.context import Context
from dispatcher.db import Connection
from dispatcher.inflight import Execution
from dispatcher.job import CancelReason
from dispatcher.leftovers import RETURN_AFTER_S, write_leftovers
from dispatcher.outcome import JobError, Outcome
from dispatcher.runtime import JobRuntime
from tests.db.running import OWNER, QUICK, as_job, claim, enqueue, job

ERROR = JobError("exception", "ValueError: no")


def test_each_leaves_its_row_as_it_ended_or_to_be_run_again(conn: Connection, lease: Connection) -> None:
    ids = [enqueue(conn) for _ in range(5)]
    done, failed, again, runs, hangs = (Execution(claimed, QUICK, 0.0) for claimed in claim(lease))
    done.outcome = Outcome.succeeded(as_job(done.claimed), '"done"')
    failed.outcome = Outcome.failed(as_job(failed.claimed), ERROR)
    again.outcome = Outcome.retry(as_job(again.claimed), 60.0, ERROR)
    hangs.ctx = Context(as_job(hangs.claimed), timeout_s=None, runtime=cast(JobRuntime, None))
    hangs.ctx.cancel(CancelReason.TIMEOUT)
    said = write_leftovers(conn, OWNER, [done, failed, again, runs, hangs])
    assert said.split("; ") == [
        "given back since they did not stop in time: 1 job",
        "past their timeout, and ending with this process: 1 job",
        "recorded as they had ended: 3 jobs",
    ]
    rows = [job(conn, id) for id in ids]
    assert [row["state"] for row in rows] == ["succeeded", "failed", "scheduled", "scheduled", "running"]
    assert [row["failures"] for row in rows] == [0, 1, 1, 0, 0]
    assert rows[0]["result"] == "done"
    pauses = [(row["run_at"] - conn.execute("select now()").fetchone()[0]).total_seconds() for row in rows[2:4]]  # type: ignore[index]
    assert 30 < pauses[0] <= 60
    assert 0 < pauses[1] <= RETURN_AFTER_S
    assert rows[4]["timed_out"]
