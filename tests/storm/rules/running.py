"""Who claims, what runs, when it starts, and how much at once."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from tests.storm.history import Attempt, Change, History
from tests.storm.plan import LEASE_S
from tests.storm.rules import CLOCKS_S

# A leader that was stopped between its decision and the statement claims late by so much: after its lease it cannot.
CLAIM_SLACK_S = 1.2 * LEASE_S
START_SLACK_S = 3.0  # between its claim, which the rate counts, and its start a job may wait in a queue


def one_leader_claims(h: History) -> Iterator[str]:
    """In each term one session claims, and none goes on in a former term once a later one has begun."""
    session_of: dict[int, str] = {}
    latest = 0
    for change in h.claims:
        claim = f"{change.session} claimed attempt {change.attempt} of job {change.job} in term {change.term}"
        if change.term is None or change.term < latest:
            yield f"{claim} after a claim in term {latest}"
            continue
        latest = change.term
        if (other := session_of.setdefault(latest, change.session)) != change.session:
            yield f"{claim}, in which {other} had claimed"


def attempts_are_counted(h: History) -> Iterator[str]:
    """A claim raises the attempt by one, and nothing else changes it: no number is handed out twice."""
    for job, changes in h.changes_of.items():
        for one, two in itertools.pairwise(changes):
            claimed = two.after == "running" and one.after != "running" and h.type_of(job) != "batch"
            if two.attempt != one.attempt + claimed:
                yield f"job {job} went from attempt {one.attempt} to {two.attempt} as it became {two.after}"


def attempts_run_once(h: History) -> Iterator[str]:
    """No attempt is started twice, none that was not claimed, and none whose end is recorded."""
    claimed = {(change.job, change.attempt) for change in h.claims}
    for job, attempts in h.attempts.items():
        for number, times in Counter(attempt.attempt for attempt in attempts).items():
            if times > 1:
                yield f"attempt {number} of job {job} was started {times} times"
            if (job, number) not in claimed:
                yield f"attempt {number} of job {job} was started and never claimed"
        for attempt in attempts:
            ended = h.ends.get((job, attempt.attempt))
            if ended is not None and attempt.start > (since := h.seen_at(ended.at)) + CLOCKS_S:
                late_s = attempt.start - since
                yield f"attempt {attempt.attempt} of job {job} was started {late_s:.3f} s after it became {ended.after}"


def attempts_do_not_overlap(h: History) -> Iterator[str]:
    """No attempt of a job starts before all that is known of the ones before it is over."""
    for job, attempts in h.attempts.items():
        for one, two in itertools.pairwise(attempts):
            if two.start < one.last:
                yield (
                    f"attempt {two.attempt} of job {job} ({h.type_of(job)}) began in process {two.pid} "
                    f"{one.last - two.start:.3f} s before attempt {one.attempt} in process {one.pid} was last seen"
                )


def nothing_starts_early(h: History) -> Iterator[str]:
    """No job is claimed before it is due, and none is due before the delay is over that it was enqueued with."""
    for change in h.claims:
        if change.due is not None and change.at < change.due:
            early_s = (change.due - change.at).total_seconds()
            yield f"attempt {change.attempt} of job {change.job} was claimed {early_s:.3f} s before it was due"
    for asked in h.enqueued:
        if asked.delay_s and asked.id in h.changes_of:
            due = h.changes_of[asked.id][0].due
            if due is None or h.seen_at(due) < asked.at + asked.delay_s - CLOCKS_S:
                yield f"job {asked.id} was to run {asked.delay_s} s after it was enqueued, and was due at {due}"


def limits_hold(h: History) -> Iterator[str]:
    """At no instant more than the limit ran, of a type, of a tenant of it, and of all: by what ran, and by the rows."""
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
    yield from _rows_over(h)


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


def _rows_over(h: History) -> Iterator[str]:
    """The rows that were running. Whatever ended before a claim looked has a lower number than that claim."""
    limits: dict[tuple[str, ...], int] = {(): h.limits.overall}
    limits |= {(type,): limit for type, limit in h.limits.types.items()}
    running: dict[tuple[str, ...], set[int]] = defaultdict(set)
    told: set[tuple[str, ...]] = set()
    for change in sorted(h.changes, key=lambda change: change.number):
        row = h.rows.get(change.job)
        if row is None or row.type == "batch":
            continue
        keys: list[tuple[str, ...]] = [(), (row.type,)]
        if row.tenant and row.type in h.limits.tenants:
            keys.append((row.type, row.tenant))
            limits[row.type, row.tenant] = h.limits.tenants[row.type]
        for key in keys:
            (running[key].add if change.after == "running" else running[key].discard)(row.id)
            if len(running[key]) > limits.get(key, math.inf) and key not in told:
                told.add(key)
                what = " of ".join(key) or "all types"
                yield f"{len(running[key])} rows of {what} were running, {limits[key]} may: {sorted(running[key])}"


def rates_hold(h: History) -> Iterator[str]:
    """In no stretch of time more starts than the rate and its burst allow; nor more claims, of those that were used."""
    for type, (rate, burst) in h.limits.rates.items():
        starts = [a.start for job, each in h.attempts.items() for a in each if h.type_of(job) == type]
        used = [c for c in h.claims if h.type_of(c.job) == type and not _given_back(h, c)]
        for what, times, slack_s in (
            ("started", starts, START_SLACK_S),
            ("were claimed", [h.seen_at(c.at) for c in used], CLAIM_SLACK_S),
        ):
            if found := _too_fast(sorted(times), rate, burst, slack_s):
                yield f"{found[0]} of {type} {what} within {found[1]:.1f} s"


def _given_back(h: History, claim: Change) -> bool:
    """Whether it never started, so that it counts no more."""
    ended = h.ends.get((claim.job, claim.attempt))
    started = any(attempt.attempt == claim.attempt for attempt in h.attempts.get(claim.job, []))
    return ended is not None and ended.after == "pending" and not started


def _too_fast(times: list[float], rate: float, burst: int, slack_s: float) -> tuple[int, float] | None:
    for first, last in itertools.combinations(range(len(times)), 2):
        count, within_s = last - first + 1, times[last] - times[first]
        if count > burst + rate * (within_s + slack_s):
            return count, within_s
    return None
