"""The completer records outcomes: it waits for the first, takes whatever else is ready, and writes once.

Idle, that adds no delay; busy, it makes large groups by itself. It never waits for a row that a user holds locked:
the quick form waits 50 ms at most, then the form that passes by locked rows is sent, and the busy ones are sent again
later. Each outcome is answered settled, stale (it came too late and changed nothing) or busy. Where an answer is lost
with the connection the outcomes are sent again: the guard of the statement makes that harmless.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import psycopg

from dispatcher.db import Connection, first_line, patiently
from dispatcher.inflight import Execution, InFlight
from dispatcher.job import FINAL, Job, State
from dispatcher.metrics import Metrics
from dispatcher.notes import REFUSED, Notes
from dispatcher.outcome import JobError, Outcome
from dispatcher.queries import outcomes as statements
from dispatcher.tally import RETRIED, Tally, Tries
from dispatcher.trouble import Trouble, undone

log = logging.getLogger("dispatcher.completer")

MAX_GROUP = 1000
DROP_CLAIMS = 100
DROP_AGAIN_S = 1.0  # those that could not be dropped are not tried again before this
MAX_GROUP_CHARS = 8_000_000  # of results and errors: a group must be written well within statement_timeout
BUSY_PAUSE_S = 0.1


class Completer:
    """Settles what ends here. `settled` is told of each group: whether a job was put back, whether one left a mark.
    `changed` is told which jobs have ended, were put back or have got further, and must not raise: that is recorded.
    """

    def __init__(
        self,
        *,
        open_session: Callable[[], Connection],
        owner: int,
        inflight: InFlight,
        metrics: Metrics,
        tally: Tally,
        settled: Callable[[Connection, bool, bool], None],
        failed: Callable[[Sequence[tuple[Job, Outcome]]], None] = lambda _ended: None,
        changed: Callable[[Connection, Iterable[int]], None] = lambda _conn, _ids: None,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_session = open_session
        self._owner = owner
        self._inflight = inflight
        self._metrics = metrics
        self._trouble = Trouble("the completer's session", log=log, metrics=metrics)
        self._tally = tally
        self._settled = settled
        self._failed = failed
        self._changed = changed
        self._stop = stop
        self._clock = clock
        self._queue: queue.SimpleQueue[Execution | None] = queue.SimpleQueue()
        self._again: list[Execution] = []
        self._notes = Notes(owner=owner, clock=clock)
        self._drop_due = 0.0
        self._conn: Connection | None = None

    @property
    def behind_s(self) -> float:
        """Seconds since outcomes could be recorded for the last time; 0 while they can be. Any thread."""
        return self._trouble.for_s

    @property
    def trouble(self) -> str | None:
        """What has kept outcomes from being recorded for more than a moment. Any thread."""
        return self._trouble.lasting

    def put(self, execution: Execution) -> None:
        """An execution whose thread is back, its outcome set. Any thread."""
        self._queue.put(execution)

    def report_progress(self, job_id: int, attempt: int, percent: float, message: str | None) -> None:
        """The latest progress wins; written in groups. Any thread."""
        if self._notes.report_progress(job_id, attempt, percent, message):
            self._queue.put(None)

    def note_timed_out(self, execution: Execution) -> None:
        """Shows in the row that the time of an attempt is over while its thread is not back, and where that is. Any
        thread.
        """
        self._notes.note_timed_out(execution)
        self._queue.put(None)

    def wake(self) -> None:
        """Lets a waiting step return."""
        self._queue.put(None)

    def step(self) -> None:
        """Waits for outcomes, at most about a second, and settles a group."""
        group = self._collect()
        if not (group or self._notes or self._inflight.empty_claims):
            self._trouble.over()  # whatever it was, nothing waits for it
            return
        if self._conn is None:
            self._conn = patiently(self._open_session, stop=self._stop, failed=self._trouble.note)
            if self._conn is None:
                self._again = group + self._again
                return
        try:
            if self._notes and (noted := self._notes.write(self._conn, [execution.key for execution in group])):
                self._changed(self._conn, noted)
            began = self._clock()
            if group:
                self._settle(self._conn, group)
                self._metrics.settle_seconds.observe(self._clock() - began)
                self._metrics.settle_size.observe(len(group))
            if not group or self._inflight.empty_claims >= DROP_CLAIMS:
                self._drop_claims(self._conn)
        except psycopg.Error as exc:
            kept = undone(self._conn, exc)
            if not kept:
                self.close()
            left = [execution for execution in group if execution.key in self._inflight]
            for execution in left:
                execution.resent = True
            self._again = left + [execution for execution in self._again if execution not in left]
            self._stop.wait(self._trouble.note(exc, kept=kept))  # however many end meanwhile
        else:
            self._trouble.over()

    def _drop_claims(self, conn: Connection) -> None:
        """At leisure, or once many have come together: nothing reads them but a take-over, which reads all."""
        if self._clock() < self._drop_due or not (empty := self._inflight.take_empty_claims()):
            return
        dropped: set[int] = set()
        try:
            dropped = statements.drop_claims(conn, empty, doubted=self._inflight.doubted_claims)
            self._inflight.doubted_claims -= dropped
        except psycopg.errors.LockNotAvailable:
            pass  # somebody's lock on the whole table: later
        finally:
            if kept := [claim for claim in empty if claim not in dropped]:
                self._inflight.put_back_empty_claims(kept)
                self._drop_due = self._clock() + DROP_AGAIN_S

    def close(self) -> None:
        """Closes the session."""
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.close()

    def _collect(self) -> list[Execution]:
        # Half at most are those that were busy before: more locked rows than a group holds must not starve the rest.
        size, count = 0, 0
        while count < min(MAX_GROUP // 2, len(self._again)) and size <= MAX_GROUP_CHARS // 2:
            size += _chars(self._again[count])
            count += 1
        group, self._again = self._again[:count], self._again[count:]
        try:
            item = self._queue.get(timeout=self._patience())
            while True:
                if item is not None:
                    group.append(item)
                    size += _chars(item)
                if len(group) >= MAX_GROUP or size > MAX_GROUP_CHARS:
                    break
                item = self._queue.get_nowait()
        except queue.Empty:
            pass
        return group

    def _patience(self) -> float:
        if self._again:
            return BUSY_PAUSE_S
        if self._notes:
            return min(1.0, self._notes.due_in_s)
        if self._inflight.empty_claims:
            return max(0.01, min(1.0, self._drop_due - self._clock()))
        return 1.0

    def _settle(self, conn: Connection, group: list[Execution]) -> None:
        final = [execution for execution in group if _outcome(execution).state in FINAL]
        back = [execution for execution in group if _outcome(execution).state not in FINAL]
        # Those that were busy before are not waited for again: each wait keeps the rest of the group waiting, too.
        fresh, busy_before = [e for e in final if not e.busy], [e for e in final if e.busy]
        done = self._send(conn, fresh, self._finish) if fresh else {}
        if busy_before:
            done |= self._send(conn, busy_before, self._finish_free)
        if back:
            done |= self._send(conn, back, self._reschedule)
        missed = [execution for execution in group if execution.key not in done]
        busy = (
            statements.list_still_running(conn, self._owner, [execution.key for execution in missed])
            if missed
            else set()
        )
        for execution in missed:
            execution.busy = execution.key in busy
        self._again += [execution for execution in missed if execution.busy]
        if unanswered := [_outcome(execution) for execution in missed if execution.resent and not execution.busy]:
            done |= dict.fromkeys(statements.list_recorded(conn, self._owner, unanswered), True)
        answered = group if not busy else [execution for execution in group if execution.key not in busy]
        self._count(answered, done)
        self._inflight.remove(answered)
        self._settled(conn, bool(back), any(done.values()))
        # Not only what is in `done`: an outcome may have been recorded by the job itself, or before an answer was lost.
        self._changed(conn, (execution.claimed.id for execution in answered))

    def _finish(self, conn: Connection, group: list[Execution]) -> statements.Recorded:
        results = [_outcome(execution) for execution in group]
        try:
            return statements.finish_jobs(conn, self._owner, results, free_only=False)
        except psycopg.errors.LockNotAvailable:
            return statements.finish_jobs(conn, self._owner, results, free_only=True)

    def _finish_free(self, conn: Connection, group: list[Execution]) -> statements.Recorded:
        return statements.finish_jobs(conn, self._owner, [_outcome(execution) for execution in group], free_only=True)

    def _reschedule(self, conn: Connection, group: list[Execution]) -> statements.Recorded:
        return statements.reschedule_jobs(conn, self._owner, [_outcome(execution) for execution in group])

    def _send(
        self,
        conn: Connection,
        group: list[Execution],
        send: Callable[[Connection, list[Execution]], statements.Recorded],
    ) -> statements.Recorded:
        """Sends a group; where the database refuses a value in it, finds the one and fails that job alone."""
        try:
            return send(conn, group)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            return {}  # the whole table is locked: all of them are busy
        except (*REFUSED, UnicodeError) as exc:
            if len(group) > 1:
                middle = len(group) // 2
                return self._send(conn, group[:middle], send) | self._send(conn, group[middle:], send)
            (execution,) = group
            error = JobError("result", f"PostgreSQL refuses the result: {first_line(exc)}")
            old = _outcome(execution)
            execution.outcome = Outcome(old.job_id, old.attempt, State.FAILED, None, error.as_json_array(), 1)
            try:
                done = self._finish(conn, group)
            except REFUSED:  # its errors are as many as a row can hold
                execution.outcome = execution.outcome._replace(errors=None)
                done = self._finish(conn, group)
            if done and execution.ctx is not None:
                self._failed([(execution.ctx.job, execution.outcome)])
            return done

    def _count(self, answered: list[Execution], done: statements.Recorded) -> None:
        tries = defaultdict[str, Tries](Tries)
        for execution in answered:
            claimed, outcome = execution.claimed, _outcome(execution)
            if execution.key in done:
                end = outcome.state if outcome.state in FINAL else RETRIED if outcome.failures else None
            elif execution.ctx is not None and execution.ctx.completed:
                end = State.SUCCEEDED
            else:
                self._count_late(execution)
                continue
            one = tries[claimed.type]
            if end is not None:
                one.ends.append(end)
            duration, wait = None, 0.0
            if started_at := execution.started_at:
                duration, wait = execution.ended_at - started_at, claimed.waited_s + started_at - execution.claimed_at
                one.durations.append(duration)
                one.waits.append(wait)
            if claimed.tenant:
                one.tenanted.append((claimed.tenant, end, duration, wait))
        self._metrics.jobs.add(tries)
        self._tally.add(tries)

    def _count_late(self, execution: Execution) -> None:
        if execution.started_at:
            claimed, jobs = execution.claimed, self._metrics.jobs
            jobs.duration[claimed.type].observe([execution.ended_at - execution.started_at])
            jobs.wait[claimed.type].observe([claimed.waited_s + execution.started_at - execution.claimed_at])
        if not execution.resent:
            self._metrics.stale.inc()
            log.warning(
                "an outcome came too late and changed nothing",
                extra={"job_id": execution.claimed.id, "attempt": execution.claimed.attempt},
            )


def _outcome(execution: Execution) -> Outcome:
    assert execution.outcome is not None  # put() is called once it is set
    return execution.outcome


def _chars(execution: Execution) -> int:
    outcome = _outcome(execution)
    return len(outcome.result or "") + len(outcome.errors or "")
