"""Drains: jobs that wait already, one replica, from the first start until nothing is unfinished; checked afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg

from tests.bench import jobs
from tests.bench.stage import BenchFailed, Stage, stage

CHUNK = 10_000  # payloads in one call of enqueue_many
TAIL = 5_000  # the last ids, looked at often; all of them once these are done
LIMITS = {jobs.LIMITED: 3}


@dataclass(frozen=True, slots=True)
class Drained:
    """How a drain went."""

    per_second: float
    wal_bytes_per_job: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits: `count` jobs, each with so many characters of padding, in turn of so many types and tenants."""

    count: int
    type: str = jobs.NOOP
    padding: int = 0
    types: int = 1
    tenants: int = 1
    env: dict[str, str] = field(default_factory=dict)


@contextmanager
def filled(dsn: str, backlog: Backlog) -> Iterator[Stage]:
    """A stage on which this waits, put there by the server itself, in the shape that enqueue leaves."""
    with stage(dsn, env=backlog.env) as own:
        own.do(
            "insert into dispatcher.job (type, tenant, state, payload)"
            " select case when %(types)s = 1 then %(type)s else %(type)s || n %% %(types)s end,"
            "        case when %(tenants)s = 1 then '' else 'tenant-' || n %% %(tenants)s end, 'pending',"
            "        case when %(padding)s = 0 then jsonb_build_object('n', n)"
            "        else jsonb_build_object('n', n, 'padding', (select string_agg(md5(n::text || '.' || i), '')"
            "             from generate_series(1, %(padding)s / 32) i)) end"
            " from generate_series(0, %(count)s - 1) n",
            types=backlog.types,
            type=backlog.type,
            tenants=backlog.tenants,
            padding=backlog.padding,
            count=backlog.count,
        )
        own.do("analyze")
        own.do("checkpoint")
        yield own


def add_finished(own: Stage, count: int) -> None:
    """Rows of jobs that succeeded long ago, with smaller ids than anything that waits."""
    own.do(
        "insert into dispatcher.job (id, type, state, owner, attempt, created_at, started_at, finished_at, payload)"
        " overriding system value select n - %(count)s, 'bench.noop', 'succeeded', 1, 1, now() - interval '1 hour',"
        " now() - interval '1 hour', now() - interval '59 minutes', jsonb_build_object('n', n)"
        " from generate_series(0, %(count)s - 1) n",
        count=count,
    )
    own.do("analyze dispatcher.job")
    own.do("checkpoint")


def drain(own: Stage, backlog: Backlog, **env: str) -> Drained:
    """Drains what waits, through one replica, and checks it."""
    before = own.wal_bytes()
    replica = own.start_replica(**backlog.env, **env, **{jobs.LAST: str(backlog.count)})
    own.until("the last job", lambda: own.noted("last"))
    done_at = own.until("the end of all jobs", lambda: _all_done(own, backlog.count))
    wal = own.wal_bytes() - before
    own.stop_replica(replica)
    check(own, backlog.count)
    seconds = done_at - float(own.noted("first")[0])
    return Drained(backlog.count / seconds, wal / backlog.count, seconds)


def drain_part(own: Stage, backlog: Backlog, count: int, **env: str) -> float:
    """Jobs a second until the `count`th of a larger backlog starts."""
    replica = own.start_replica(**backlog.env, **env, **{jobs.LAST: str(count)})
    own.until("the last of them", lambda: own.noted("last"))
    own.stop_replica(replica)
    check(own, None)
    return count / (float(own.noted("last")[0]) - float(own.noted("first")[0]))


def check(own: Stage, count: int | None) -> None:
    """Each job ran once and is recorded once, and no limit was passed; `count` is all there were, None for some."""
    ran = [int(n) for line in own.noted("ran") for n in line.split(",")]
    if len(set(ran)) != len(ran) or (count is not None and sorted(ran) != list(range(count))):
        raise BenchFailed("some job ran twice or never")
    wrong = own.ask(
        "select count(*) from dispatcher.job where id > 0 and state <> 'pending'"
        " and (state <> 'succeeded' or attempt <> 1 or finished_at is null)"
    )
    recorded = own.ask("select count(*) from dispatcher.job where id > 0 and state = 'succeeded' and attempt = 1")
    if wrong or recorded != len(ran):
        raise BenchFailed(
            f"{recorded} of {len(ran)} jobs are recorded as succeeded in their first attempt, {wrong} not"
        )
    for line in own.noted("most"):
        type, most = line.split("=")
        if type in LIMITS and int(most) > LIMITS[type]:
            raise BenchFailed(f"{most} jobs of {type} ran at once, of which {LIMITS[type]} may")


def enqueue_many(own: Stage, count: int) -> None:
    """No-ops in large chunks, by the client."""
    for start in range(0, count, CHUNK):
        own.client.enqueue_many(jobs.NOOP, ({"n": n} for n in range(start, min(start + CHUNK, count))))


def _all_done(own: Stage, count: int) -> float | None:
    at = time.monotonic()
    left = "select exists (select from dispatcher.job where id > %s and state not in ('succeeded', 'failed'))"
    with psycopg.connect(own.dsn, autocommit=True) as conn:
        for after in (max(0, count - TAIL), 0):
            if conn.execute(left.encode(), (after,)).fetchone() == (True,):
                return None
    return at
