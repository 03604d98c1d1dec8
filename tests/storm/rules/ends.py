"""How attempts end, and what becomes of their jobs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from tests.storm.history import FINAL, Attempt, Change, History, Row
from tests.storm.rules import CLOCKS_S

# Who may follow whom. A job that ended goes on only if somebody retried it, which is counted.
MOVES = {
    None: {"scheduled", "blocked", "pending", "running"},  # a batch is running from the start
    "scheduled": {"pending", "running", "blocked", "canceled"},
    "blocked": {"pending", "scheduled", "canceled"},
    "pending": {"running", "canceled", "blocked", "scheduled"},
    "running": {"pending", "scheduled", *FINAL},
}
# By which of its own ends an attempt may have been recorded so.
ENDS = {
    "succeeded": {"return", "complete"},
    "partial": {"partial"},
    "canceled": {"cancel", "interrupted", "raise", "retry", "snooze"},  # no more tries where somebody canceled it
    "failed": {"fail", "raise", "retry", "interrupted"},
    "scheduled": {"raise", "retry", "snooze", "interrupted"},
    "pending": {"interrupted", "raise"},  # what it raises as it is asked to stop is not its own fault
}
FAILURES = ("exception", "retry", "fail", "crash", "timeout")  # kinds of errors that count against max_attempts
# A job that comes to its end as its replica gives up waiting for it is given back all the same.
AS_IT_ENDED_S = 1.0


def states_follow_one_another(h: History) -> Iterator[str]:
    """Each change is one of MOVES, from the state that the change before left; final is final, unless retried."""
    for job, changes in h.changes_of.items():
        before: str | None = None
        revived = 0
        for change in changes:
            if change.before != before:
                yield f"job {job} went from {change.before} to {change.after}, but was {before}"
            if before in FINAL and change.after != before:
                revived += 1
            elif before not in FINAL and change.after != before and change.after not in MOVES[before]:
                yield f"job {job} went from {before} to {change.after}"
            before = change.after
        if revived > h.retried.get(job, 0):
            yield f"job {job} went on {revived} times after its end, and was retried {h.retried.get(job, 0)} times"
        if job in h.rows and h.rows[job].state != before:
            yield f"job {job} is {h.rows[job].state}, but became {before}"


def what_is_recorded_is_what_was_done(h: History) -> Iterator[str]:
    """Each recorded end of an attempt is the one that the attempt itself told; the row's result is the last one's."""
    told = {(a.job, a.attempt): a for attempts in h.attempts.values() for a in attempts}
    effects = frozenset(h.effects)
    for (job, number), change in h.ends.items():
        row = h.rows.get(job)
        if row is None or _excused(h, row, number) or (change.after == "succeeded" and (job, number) in effects):
            continue  # it recorded that itself, and had no time to tell
        attempt = told.get((job, number))
        if attempt is None or attempt.how is None:
            if change.after in ("succeeded", "partial", "failed"):
                yield f"job {job} ({row.type}) became {change.after}, and attempt {number} told of no end"
        elif attempt.how not in ENDS[change.after] and not _given_back_as_it_ended(h, change, attempt):
            yield f"job {job} ({row.type}) became {change.after}, and attempt {number} ended by {attempt.how}"
    for row in h.rows.values():
        if row.type == "batch":
            continue
        if row.state in ("succeeded", "partial") and (not row.result or row.result.get("attempt") != row.attempt):
            yield f"job {row.id} ({row.type}) is {row.state} in attempt {row.attempt}, and its result is {row.result}"
        later = [a.attempt for a in h.attempts.get(row.id, []) if a.attempt > row.attempt]
        if later:
            yield f"attempt {later[0]} of job {row.id} was started, and its row knows {row.attempt}"


def _excused(h: History, row: Row, number: int) -> bool:
    """Whether something else ended that attempt: a crash, or its timeout, if it has one."""
    kinds = {error["kind"] for error in row.errors if error["attempt"] == number}
    return "crash" in kinds or ("timeout" in kinds and row.type in h.timeouts_s)


def _given_back_as_it_ended(h: History, change: Change, attempt: Attempt) -> bool:
    return change.after == "scheduled" and h.seen_at(change.at) - attempt.last < AS_IT_ENDED_S


def timeouts_and_crashes_have_a_reason(h: History) -> Iterator[str]:
    """Nothing times out early, whatever the clock of the day says; who is taken for dead does nothing more."""
    seen: dict[int, list[Attempt]] = defaultdict(list)
    for attempts in h.attempts.values():
        for attempt in attempts:
            seen[attempt.pid].append(attempt)
    for row in h.rows.values():
        kinds = {(error["attempt"], error["kind"]) for error in row.errors}
        for attempt in h.attempts.get(row.id, []):
            if (attempt.attempt, "timeout") in kinds:
                ran_s = attempt.last - attempt.start
                if row.type not in h.timeouts_s or (attempt.how and ran_s < h.timeouts_s[row.type]):
                    yield f"attempt {attempt.attempt} of job {row.id} ({row.type}) timed out after {ran_s:.3f} s"
            ended = h.ends.get((row.id, attempt.attempt))
            if ended is None or (attempt.attempt, "crash") not in kinds:
                continue
            at = h.seen_at(ended.at)
            if alive := [a for a in seen[attempt.pid] if a.start < at and a.last > at + CLOCKS_S]:
                yield (
                    f"attempt {attempt.attempt} of job {row.id} has crashed, and its process {attempt.pid} worked on "
                    f"job {alive[0].job} {alive[0].last - at:.3f} s later"
                )


def nothing_runs_past_its_end(h: History) -> Iterator[str]:
    """What is recorded as over, or as given back until later, is over by then, also where no other attempt follows."""
    effects = frozenset(h.effects)  # these have ended with their commit, though their thread may learn of it later
    for job, attempts in h.attempts.items():
        for attempt in attempts:
            ended = h.ends.get((job, attempt.attempt))
            if ended is None or (job, attempt.attempt) in effects:
                continue
            until = max(ended.at, ended.due or ended.at) if ended.after == "scheduled" else ended.at
            if attempt.last > h.seen_at(until) + CLOCKS_S:
                late_s = attempt.last - h.seen_at(until)
                yield f"attempt {attempt.attempt} of job {job} ran {late_s:.3f} s after it had become {ended.after}"


def tries_are_counted(h: History) -> Iterator[str]:
    """Failures are the errors that tell of one; a job fails for good at its last one, or by choice."""
    for row in h.rows.values():
        if row.type == "batch":
            continue
        # One that was past its timeout and came back after all has succeeded, and the note of that is no failure.
        late = ("timeout", row.attempt) if row.state == "succeeded" else None
        told = {(error["kind"], error["attempt"]) for error in row.errors if error["kind"] in FAILURES} - {late}
        counted = len({attempt for _, attempt in told})
        if row.failures > row.max_attempts:
            yield f"job {row.id} ({row.type}) has {row.failures} failures of at most {row.max_attempts}"
        if row.id not in h.retried and row.failures != counted:
            yield f"job {row.id} ({row.type}) has {row.failures} failures, and {counted} errors that count as one"
        own = [a.how for a in h.attempts.get(row.id, []) if a.attempt == row.attempt]
        if row.state == "failed" and row.failures < row.max_attempts and own != ["fail"]:
            yield f"job {row.id} ({row.type}) failed for good with {row.failures} of {row.max_attempts} failures"


def effects_happen_once(h: History) -> Iterator[str]:
    """What a job writes in the transaction of its outcome is there once, and only if that outcome is."""
    written: dict[int, list[int]] = defaultdict(list)
    for job, attempt in h.effects:
        written[job].append(attempt)
    for row in h.rows.values():
        expected = [row.attempt] if row.type in ("effect", "steps") and row.state == "succeeded" else []
        # What has succeeded cannot be retried: so this holds whoever tried to.
        if written[row.id] != expected:
            yield f"job {row.id} is {row.state} in attempt {row.attempt}, and wrote in attempts {written[row.id]}"


def checkpoints_count(h: History) -> Iterator[str]:
    """What a job writes in the transaction of a checkpoint is there once, and all of it once it has succeeded."""
    written: dict[int, list[int]] = defaultdict(list)
    for job, part in sorted(h.parts):
        written[job].append(part)
    for row in h.rows.values():
        if row.type == "steps":
            steps = row.payload["steps"] if row.state == "succeeded" else len(written[row.id])
            if written[row.id] != list(range(steps)):
                yield f"job {row.id} is {row.state}, and wrote the parts {written[row.id]} of {row.payload['steps']}"
