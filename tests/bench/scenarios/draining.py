"""Drains: jobs that wait already, one replica, from the first start until nothing is unfinished; checked afterwards."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg

from tests.bench import jobs
from tests.bench.check import check
from tests.bench.stage import PATIENCE_S, Stage, stage

CHUNK = 10_000  # payloads in one call of enqueue_many
TAIL = 5_000  # the last ids, looked at often; all of them once these are done
SLOWEST = 1_000  # jobs a second; a drain that is slower has stopped

_FINISHED = """
insert into dispatcher.job (id, type, state, owner, attempt, created_at, started_at, finished_at, payload)
overriding system value
select n - %(count)s, 'bench.noop', 'succeeded', 1, 1, now() - interval '1 hour', now() - interval '1 hour',
       now() - interval '59 minutes', jsonb_build_object('n', n)
from generate_series(0, %(count)s - 1) n
"""
_PENDING = """
insert into dispatcher.job (type, tenant, state, payload)
select case when %(types)s = 1 then %(type)s else %(type)s || n %% %(types)s end,
       case when %(tenants)s = 1 then '' else 'tenant-' || n %% %(tenants)s end, 'pending',
       case when %(padding)s = 0 then jsonb_build_object('n', n)
            else jsonb_build_object('n', n, 'padding', (
                select string_agg(md5(n::text || '.' || i), '') from generate_series(1, %(padding)s / 32) i)) end
from generate_series(0, %(count)s - 1) n
"""


@dataclass(frozen=True, slots=True)
class Drained:
    """How a drain of `count` jobs went."""

    count: int
    seconds: float
    wal_bytes: int

    @property
    def per_second(self) -> float:
        """Jobs, each from its claim to its recorded outcome."""
        return self.count / self.seconds

    @property
    def wal_per_job(self) -> float:
        """Bytes."""
        return self.wal_bytes / self.count

    @property
    def wal_mb_per_second(self) -> float:
        """Millions of bytes."""
        return self.wal_bytes / self.seconds / 1e6


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits: `count` jobs, each with so many characters of padding, in turn of so many types and tenants.

    `finished` more succeeded an hour ago, and have smaller ids than anything that waits.
    """

    count: int
    type: str = jobs.NOOP
    padding: int = 0
    types: int = 1
    tenants: int = 1
    finished: int = 0
    env: dict[str, str] = field(default_factory=dict)


@contextmanager
def filled(dsn: str, backlog: Backlog) -> Iterator[Stage]:
    """A stage on which this waits, put there by the server itself, in the shape that enqueue and outcomes leave."""
    with stage(dsn, env=backlog.env) as own:
        own.do(_FINISHED, count=backlog.finished)
        own.do(
            _PENDING,
            types=backlog.types,
            type=backlog.type,
            tenants=backlog.tenants,
            padding=backlog.padding,
            count=backlog.count,
        )
        own.do("analyze")
        own.do("checkpoint")
        yield own


def drain(own: Stage, backlog: Backlog, **env: str) -> Drained:
    """Drains what waits, through one replica, and checks it."""
    before, patience_s = own.wal_bytes(), PATIENCE_S + backlog.count / SLOWEST
    replica = own.start_replica(**backlog.env, **env, **{jobs.LAST: str(backlog.count)})
    own.until("the last job", lambda: own.noted("last"), patience_s)
    done_at = own.until("the end of all jobs", lambda: _all_done(own, backlog.count))
    wal = own.wal_bytes() - before
    own.stop_replica(replica)
    check(own, backlog.count)
    return Drained(backlog.count, done_at - float(own.noted("first")[0]), wal)


def drain_fresh(dsn: str, backlog: Backlog, **env: str) -> Drained:
    """The same in a new database."""
    with filled(dsn, backlog) as own:
        return drain(own, backlog, **env)


def drain_part(dsn: str, backlog: Backlog, count: int) -> float:
    """Jobs a second from the first start to the `count`th, of a backlog that may be larger; in a new database."""
    with filled(dsn, backlog) as own:
        replica = own.start_replica(**backlog.env, **{jobs.LAST: str(count)})
        own.until("the last of them", lambda: own.noted("last"), PATIENCE_S + count / SLOWEST)
        own.stop_replica(replica)
        check(own, None)
        return count / (float(own.noted("last")[0]) - float(own.noted("first")[0]))


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
