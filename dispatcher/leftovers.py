"""What a replica that ends leaves in its rows: of jobs that did not end in time, and of ends that nobody wrote."""

from __future__ import annotations

from collections.abc import Sequence

from dispatcher.db import Connection
from dispatcher.inflight import Execution
from dispatcher.job import FINAL, CancelReason
from dispatcher.notes import stuck_error
from dispatcher.queries import outcomes

RETURN_AFTER_S = 3.0  # those jobs are not claimed anew before this, well after the exit


def hangs(execution: Execution) -> bool:
    """Whether it was asked to stop since its time was over."""
    return execution.ctx is not None and execution.ctx.canceled is CancelReason.TIMEOUT


def write_leftovers(conn: Connection, owner: int, executions: Sequence[Execution]) -> str:
    """Writes what becomes of what `owner` has, each as due only once this process is certainly gone; says what it did,
    if anything.

    A job past its timeout stays running and is marked: whoever sees this process dead ends it by that mark, as timed
    out. Given back, one that hangs each time would do so for ever; failed, what follows from it could begin while it
    still runs.
    """
    ended = [execution.outcome for execution in executions if execution.outcome is not None]
    running = [execution for execution in executions if execution.outcome is None]
    stuck = [execution for execution in running if hangs(execution)]
    back = [execution for execution in running if not hangs(execution)]
    if stuck:
        outcomes.mark_timed_out(conn, owner, {execution.key: stuck_error(execution) for execution in stuck})
    if final := [outcome for outcome in ended if outcome.state in FINAL]:
        outcomes.finish_jobs(conn, owner, final, free_only=True)
    if again := [outcome for outcome in ended if outcome.state not in FINAL]:
        outcomes.reschedule_jobs(conn, owner, again)
    if back:
        outcomes.postpone_jobs(conn, owner, [execution.key for execution in back], RETURN_AFTER_S)
    did = (
        ("given back since they did not stop in time", len(back)),
        ("past their timeout, and ending with this process", len(stuck)),
        ("recorded as they had ended", len(ended)),
    )
    told = [f"{what}: {count} job{'' if count == 1 else 's'}" for what, count in did if count]
    return "; ".join(told)
