"""The promises as facts about a history. Each rule yields a line for each breach, and names the jobs.

A rule accuses only on evidence (history.py), so what it finds has happened; what leaves no trace it cannot find.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator

from tests.storm.history import FINAL, Attempt, Change, History

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
# A job that comes to its end as its replica gives up waiting for it is given back all the same.
AS_IT_ENDED_S = 1.0
RATE_SLACK_S = 3.0  # between a claim, which the rate counts, and the start, which is seen, a claim may wait in a queue

Rule = Callable[[History], Iterator[str]]


def check(history: History) -> list[str]:
    """Every breach of every rule; none if all promises were kept."""
    return [f"{rule.__name__}: {breach}" for rule in RULES for breach in rule(history)]


def nothing_is_lost(h: History) -> Iterator[str]:
    """What was committed is there, and came to a final state, as everything that is there."""
    for id in sorted(h.committed - h.rows.keys()):
        yield f"job {id} was committed and is not there"
    for row in h.rows.values():
        if row.state not in FINAL:
            yield f"job {row.id} ({row.type}) is {row.state}"


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


def attempts_are_counted(h: History) -> Iterator[str]:
    """A claim raises the attempt by one, and nothing else changes it: no number is handed out twice."""
    for job, changes in h.changes_of.items():
        for one, two in itertools.pairwise(changes):
            claimed = two.after == "running" and one.after != "running" and h.rows[job].type != "batch"
            if two.attempt != one.attempt + claimed:
                yield f"job {job} went from attempt {one.attempt} to {two.attempt} as it became {two.after}"


def attempts_run_once(h: History) -> Iterator[str]:
    """No attempt is started twice, and none that was not claimed."""
    claimed = {(change.job, change.attempt) for change in h.changes if change.after == "running"}
    for job, attempts in h.attempts.items():
        for number, times in Counter(attempt.attempt for attempt in attempts).items():
            if times > 1:
                yield f"attempt {number} of job {job} was started {times} times"
            if (job, number) not in claimed:
                yield f"attempt {number} of job {job} was started and never claimed"


def attempts_do_not_overlap(h: History) -> Iterator[str]:
    """No attempt of a job starts before all that is known of the ones before it is over."""
    for job, attempts in h.attempts.items():
        for one, two in itertools.pairwise(attempts):
            if two.start < one.last:
                yield (
                    f"attempt {two.attempt} of job {job} ({h.rows[job].type}) began in process {two.pid} "
                    f"{one.last - two.start:.3f} s before attempt {one.attempt} in process {one.pid} was last seen"
                )


def limits_hold(h: History) -> Iterator[str]:
    """At no instant more than the limit ran: of a type, of a tenant within a type, and of all."""
    everything: list[Attempt] = []
    by_type: dict[str, list[Attempt]] = defaultdict(list)
    by_tenant: dict[tuple[str, str], list[Attempt]] = defaultdict(list)
    for job, attempts in h.attempts.items():
        if job not in h.rows:
            continue
        row = h.rows[job]
        everything += attempts
        by_type[row.type] += attempts
        if row.tenant:
            by_tenant[row.type, row.tenant] += attempts
    yield from _over(everything, h.limits.overall, "all types")
    for type, limit in h.limits.types.items():
        yield from _over(by_type[type], limit, type)
    for (type, tenant), attempts in by_tenant.items():
        if type in h.limits.tenants:
            yield from _over(attempts, h.limits.tenants[type], f"{type} of {tenant}")


def _over(attempts: Iterable[Attempt], limit: int, what: str) -> Iterator[str]:
    running: set[tuple[int, int]] = set()
    # An end before a start at the same instant: the slot was free.
    steps = [(a.start, 1, (a.job, a.attempt)) for a in attempts]
    steps += [(max(a.last, math.nextafter(a.start, math.inf)), 0, (a.job, a.attempt)) for a in attempts]
    for at, begins, key in sorted(steps):
        if begins:
            running.add(key)
            if len(running) > limit:
                yield f"{len(running)} of {what} ran at {at:.3f}, {limit} may: {sorted(running)}"
                return
        else:
            running.discard(key)


def rates_hold(h: History) -> Iterator[str]:
    """In no stretch of time more starts than the rate and its burst allow."""
    for type, (rate, burst) in h.limits.rates.items():
        starts = sorted(a.start for job, each in h.attempts.items() for a in each if h.rows[job].type == type)
        for first, last in itertools.combinations(range(len(starts)), 2):
            allowed = burst + rate * (starts[last] - starts[first] + RATE_SLACK_S)
            if last - first + 1 > allowed:
                yield f"{last - first + 1} of {type} started within {starts[last] - starts[first]:.1f} s"
                return


def what_is_recorded_is_what_was_done(h: History) -> Iterator[str]:
    """Each recorded end of an attempt is the one that the attempt itself told; the row's result is the last one's."""
    ended = {(a.job, a.attempt): a.last for attempts in h.attempts.values() for a in attempts}
    effects = frozenset(h.effects)
    told = {(a.job, a.attempt): a.how for attempts in h.attempts.values() for a in attempts}
    for job, changes in h.changes_of.items():
        row = h.rows.get(job)
        if row is None or row.type == "batch":
            continue
        crashed = {error["attempt"] for error in row.errors if error["kind"] in ("crash", "timeout")}
        for one, two in itertools.pairwise(changes):
            if one.after != "running" or two.after == "running" or two.attempt in crashed:
                continue
            how = told.get((job, two.attempt))
            if (job, two.attempt) in effects and two.after == "succeeded":
                continue  # it recorded that itself, and had no time to tell
            if how is None and two.after in ("succeeded", "partial", "failed"):
                yield f"job {job} ({row.type}) became {two.after}, and attempt {two.attempt} told of no end"
            elif how is not None and how not in ENDS[two.after]:
                since_s = two.at.timestamp() - h.clock_offset_s - ended[job, two.attempt]
                if two.after == "scheduled" and since_s < AS_IT_ENDED_S:
                    continue
                yield f"job {job} ({row.type}) became {two.after}, and attempt {two.attempt} ended by {how}"
        if row.state == "succeeded" and (not row.result or row.result.get("attempt") != row.attempt):
            yield f"job {job} ({row.type}) succeeded in attempt {row.attempt}, and its result is {row.result}"
        later = [a.attempt for a in h.attempts.get(job, []) if a.attempt > row.attempt]
        if later:
            yield f"attempt {later[0]} of job {job} was started, and its row knows {row.attempt}"


def cancels_have_a_reason(h: History) -> Iterator[str]:
    """Nobody's job is canceled unasked: somebody did, its batch, a job before it, or itself."""
    for row in h.rows.values():
        if row.state != "canceled" or row.id in h.canceled or (row.parent_id or 0) in h.canceled:
            continue
        before = [h.rows[id].state for id in row.payload.get("after", []) if id in h.rows]
        if row.type == "batch" and {r.state for r in h.rows.values() if r.parent_id == row.id} == {"canceled"}:
            continue
        itself = any(a.attempt == row.attempt and a.how == "cancel" for a in h.attempts.get(row.id, []))
        if not itself and not {"failed", "canceled"} & set(before):
            yield f"job {row.id} ({row.type}) is canceled, and nobody asked for it"


def effects_happen_once(h: History) -> Iterator[str]:
    """What a job writes in the transaction of its outcome is there once, and only if that outcome is."""
    written: dict[int, list[int]] = defaultdict(list)
    for job, attempt in h.effects:
        written[job].append(attempt)
    for row in h.rows.values():
        if row.type != "effect":
            continue
        expected = [row.attempt] if row.state == "succeeded" else []
        if written[row.id] != expected and row.id not in h.retried:
            yield f"job {row.id} is {row.state} in attempt {row.attempt}, and wrote in attempts {written[row.id]}"


def unique_keys_are_unique(h: History) -> Iterator[str]:
    """Of a type and key no job is enqueued before the one before it has ended."""
    spans: dict[tuple[str, str], list[tuple[Change, Change | None]]] = defaultdict(list)
    for row in h.rows.values():
        if row.unique_key:
            changes = h.changes_of[row.id]
            ends = [change for change in changes if change.after in FINAL]
            spans[row.type, row.unique_key].append((changes[0], ends[0] if ends else None))
    for (type, key), each in spans.items():
        each.sort(key=lambda span: span[0].number)
        for (one, end), (two, _) in itertools.pairwise(each):
            if end is None or two.at < end.at:
                yield f"job {two.job} of {type} with key {key} was enqueued while job {one.job} had not ended"


def who_comes_after_waits(h: History) -> Iterator[str]:
    """A job after others starts once they have ended; it does not where one failed, unless it was to run then too."""
    for row in h.rows.values():
        starts = [a.start for a in h.attempts.get(row.id, [])]
        for before in row.payload.get("after", []):
            if before not in h.rows:
                continue
            last = max((a.last for a in h.attempts.get(before, [])), default=0.0)
            if starts and min(starts) < last:
                yield f"job {row.id} started {last - min(starts):.3f} s before job {before} was done"
            bad = h.rows[before].state in ("failed", "canceled")
            if bad and row.payload.get("on_failure") != "run" and (starts or row.state != "canceled"):
                yield f"job {row.id} is {row.state}, and job {before} before it {h.rows[before].state}"


def schedules_fire_once(h: History) -> Iterator[str]:
    """One job for each due time: never two, and where all are to be made good, none is missing."""
    fired: dict[str, list[object]] = defaultdict(list)
    for row in h.rows.values():
        if schedule := row.payload.get("schedule"):
            fired[schedule].append(row.run_at)
    for schedule, times in fired.items():
        for at, count in Counter(times).items():
            if count > 1:
                yield f"schedule {schedule} fired {count} times for {at}"
    for schedule, due in h.due.items():
        for at in due:
            if at not in fired[schedule]:
                yield f"schedule {schedule} did not fire for {at}"


def batches_end_once(h: History) -> Iterator[str]:
    """A batch ends once, with exact counts, in the state that they give, and its callback is enqueued once."""
    children: dict[int, Counter[str]] = defaultdict(Counter)
    names: dict[int, object] = {}  # what the load calls a batch: its jobs have it in their payload
    for row in h.rows.values():
        if row.parent_id is not None:
            children[row.parent_id][row.state] += 1
            names[row.parent_id] = row.payload["batch"]
    callbacks = Counter(row.payload["callback_of"] for row in h.rows.values() if "callback_of" in row.payload)
    for batch in h.batches:
        counted = +children[batch.id]
        if counted != +Counter(batch.counts) or batch.total != counted.total():
            yield f"batch {batch.id} tells {batch.counts} of {batch.total}, and has {dict(counted)}"
        if batch.state != _state_of(counted) and not (batch.state == "canceled" and batch.id in h.canceled):
            yield f"batch {batch.id} is {batch.state}, and its jobs {dict(counted)}"
        ends = [change for change in h.changes_of[batch.id] if change.after in FINAL]
        if len(ends) != 1:
            yield f"batch {batch.id} ended {len(ends)} times"
        if callbacks[names.get(batch.id)] != 1:
            yield f"the callback of batch {batch.id} was enqueued {callbacks[names.get(batch.id)]} times"


def _state_of(counts: Counter[str]) -> str:
    if len(counts) == 1 and counts.keys() <= {"succeeded", "canceled"}:
        return next(iter(counts))
    good = counts["succeeded"] + counts["partial"]
    return "partial" if good else "failed"


RULES: tuple[Rule, ...] = (
    nothing_is_lost,
    states_follow_one_another,
    attempts_are_counted,
    attempts_run_once,
    attempts_do_not_overlap,
    limits_hold,
    rates_hold,
    what_is_recorded_is_what_was_done,
    cancels_have_a_reason,
    effects_happen_once,
    unique_keys_are_unique,
    who_comes_after_waits,
    schedules_fire_once,
    batches_end_once,
)
