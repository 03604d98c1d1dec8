"""Whether what was asked for was done: jobs, cancels, unique keys, order, schedules, batches."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime

from tests.storm.history import FINAL, BatchRow, Change, History
from tests.storm.rules import CLOCKS_S


def nothing_is_lost(h: History) -> Iterator[str]:
    """What was committed is there as it was asked for, and came to a final state, as everything that is there."""
    for asked in h.enqueued:
        row = h.rows.get(asked.id)
        if row is None:
            yield f"job {asked.id} was committed and is not there"
        elif row.type != asked.type or (asked.n is not None and asked.key is None and row.payload.get("n") != asked.n):
            yield f"job {asked.id} was enqueued as number {asked.n} of {asked.type}, and is {row.payload} of {row.type}"
    for id in sorted((h.changes_of.keys() | h.attempts.keys()) - h.rows.keys() - {asked.id for asked in h.enqueued}):
        yield f"job {id} was there, and is not any more"
    for row in h.rows.values():
        if row.state not in FINAL:
            yield f"job {row.id} ({row.type}) is {row.state}"


def cancels_have_a_reason(h: History) -> Iterator[str]:
    """Nobody's job is canceled unasked: somebody did, its batch, a job before it, or itself."""
    for row in h.rows.values():
        if row.state != "canceled" or row.id in h.canceled or (row.parent_id or 0) in h.canceled:
            continue
        waits = row.payload.get("on_failure") != "run"
        before = [h.rows[id].state for id in row.payload.get("after", []) if waits and id in h.rows]
        if row.type == "batch" and {r.state for r in h.rows.values() if r.parent_id == row.id} == {"canceled"}:
            continue
        itself = any(a.attempt == row.attempt and a.how == "cancel" for a in h.attempts.get(row.id, []))
        if not itself and not {"failed", "canceled"} & set(before):
            yield f"job {row.id} ({row.type}) is canceled, and nobody asked for it"


def cancels_count(h: History) -> Iterator[str]:
    """Once a cancel was answered the job is not begun any more, unless somebody retried it."""
    for change in h.claims:
        answered = h.canceled_at.get(change.job)
        if answered is not None and change.job not in h.retried and h.seen_at(change.at) > answered + CLOCKS_S:
            yield f"attempt {change.attempt} of job {change.job} was claimed after the job had been canceled"


def unique_keys_are_unique(h: History) -> Iterator[str]:
    """Of a type and key no job is enqueued before the one before it has ended; and who asks gets one that had not."""
    spans: dict[tuple[str, str], list[tuple[Change, Change | None]]] = defaultdict(list)
    for row in h.rows.values():
        if row.unique_key:
            spans[row.type, row.unique_key].append((h.changes_of[row.id][0], _end(h, row.id)))
    for (type, key), each in spans.items():
        each.sort(key=lambda span: span[0].number)
        for (one, end), (two, _) in itertools.pairwise(each):
            if end is None or two.at < end.at:
                yield f"job {two.job} of {type} with key {key} was enqueued while job {one.job} had not ended"
    answers = Counter(asked.id for asked in h.enqueued if asked.key is None)
    yield from (f"job {id} is the answer to {times} enqueues" for id, times in answers.items() if times > 1)
    for asked in h.enqueued:
        if asked.key is None or asked.id not in h.rows:
            continue
        end = _end(h, asked.id)
        if h.rows[asked.id].unique_key != asked.key:
            yield f"job {asked.id} is the answer for key {asked.key}, and has {h.rows[asked.id].unique_key}"
        elif end is not None and h.seen_at(end.at) < asked.at - CLOCKS_S:
            yield f"job {asked.id} is the answer for key {asked.key}, and had ended before"


def _end(h: History, job: int) -> Change | None:
    """Its first one."""
    return next((change for change in h.changes_of[job] if change.after in FINAL), None)


def who_comes_after_waits(h: History) -> Iterator[str]:
    """A job after others starts once they have ended; it does not where one failed, unless it was to run then too."""
    for row in h.rows.values():
        starts = [a.start for a in h.attempts.get(row.id, [])]
        claimed = [change.number for change in h.changes_of.get(row.id, []) if change.after == "running"]
        for before in row.payload.get("after", []):
            if before not in h.rows:
                continue
            last = max((a.last for a in h.attempts.get(before, [])), default=0.0)
            if starts and min(starts) < last:
                yield f"job {row.id} started {last - min(starts):.3f} s before job {before} was done"
            end = _end(h, before)
            if claimed and (end is None or claimed[0] < end.number):
                yield f"job {row.id} was claimed before job {before} had ended"
            bad = h.rows[before].state in ("failed", "canceled")
            if bad and row.payload.get("on_failure") != "run" and (starts or row.state != "canceled"):
                yield f"job {row.id} is {row.state}, and job {before} before it {h.rows[before].state}"


def schedules_fire_once(h: History) -> Iterator[str]:
    """One job for each due time: never two, none before it, and none is missing where it must be made good."""
    fired: dict[str, list[datetime | None]] = defaultdict(list)
    for row in h.rows.values():
        if schedule := row.payload.get("schedule"):
            fired[schedule].append(row.due)
            if row.due is None or row.due.second or row.due.microsecond:
                yield f"schedule {schedule} fired for {row.due}, which is no full minute"
            elif h.changes_of[row.id][0].at < row.due:
                yield f"schedule {schedule} fired for {row.due} at {h.changes_of[row.id][0].at}"
    for schedule, times in fired.items():
        for at, count in Counter(times).items():
            if count > 1:
                yield f"schedule {schedule} fired {count} times for {at}"
    for schedule, due in h.due.items():
        for at in due:
            if at not in fired[schedule]:
                yield f"schedule {schedule} did not fire for {at}"


def batches_end_once(h: History) -> Iterator[str]:
    """A batch ends once, after all its jobs, with exact counts and their state, and its callback is enqueued once."""
    children: dict[int, list[int]] = defaultdict(list)
    for row in h.rows.values():
        if row.parent_id is not None:
            children[row.parent_id].append(row.id)
    callbacks = Counter(row.payload["callback_of"] for row in h.rows.values() if "callback_of" in row.payload)
    sizes = {asked.id: asked.jobs for asked in h.enqueued if asked.jobs}
    for batch in h.batches:
        jobs = children[batch.id]
        counted = Counter(h.rows[job].state for job in jobs)
        if counted != +Counter(batch.counts) or not batch.total == len(jobs) == sizes.get(batch.id, len(jobs)):
            wanted = sizes.get(batch.id, batch.total)
            yield f"batch {batch.id} of {wanted} tells {batch.counts} of {batch.total}, and has {dict(counted)}"
        if batch.state != _state_of(counted) and not (batch.state == "canceled" and batch.id in h.canceled):
            yield f"batch {batch.id} is {batch.state}, and its jobs {dict(counted)}"
        yield from _ends_after(h, batch, jobs)
        # What the load calls a batch: its jobs have it in their payload, and so has the callback.
        name = h.rows[jobs[0]].payload["batch"] if jobs else None
        if callbacks[name] != 1:
            yield f"the callback of batch {batch.id} was enqueued {callbacks[name]} times"


def _ends_after(h: History, batch: BatchRow, jobs: list[int]) -> Iterator[str]:
    ends = [change for change in h.changes_of.get(batch.id, []) if change.after in FINAL]
    if len(ends) != 1:
        yield f"batch {batch.id} ended {len(ends)} times"
    for job in jobs:
        last = h.changes_of[job][-1]
        if ends and last.number > ends[-1].number:
            yield f"batch {batch.id} ended before job {job} became {last.after}"


def _state_of(counts: Counter[str]) -> str:
    if len(counts) == 1 and counts.keys() <= {"succeeded", "canceled"}:
        return next(iter(counts))
    good = counts["succeeded"] + counts["partial"]
    return "partial" if good else "failed"
