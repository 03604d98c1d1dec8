"""What the database alone could do: the same two updates a job, in batches, by a loop inside the server.

No client, no network, no limits, no lanes: what is built on such a table can hardly be faster. Large payloads are
read with the claim, as no job could run without its own.
"""

from __future__ import annotations

import json
import time

import psycopg

BATCH = 500

_SETUP = """
create table floor_job (
    id bigint generated always as identity primary key,
    created_at timestamptz not null default now(), run_at timestamptz, started_at timestamptz, finished_at timestamptz,
    owner integer, attempt integer not null default 0, timeout_s real, progress real,
    failures smallint not null default 0, max_attempts smallint, priority smallint not null default 0,
    cancel_requested boolean not null default false, pending boolean not null default true,
    type text not null, tenant text not null default '', state text not null default 'pending', unique_key text,
    payload jsonb not null, result jsonb
) with (fillfactor = 50);
create index floor_lane on floor_job (type, tenant, priority, id) where pending;
create procedure floor_drain(batch integer, outcome jsonb, reading boolean) language plpgsql as $$
declare
    taken bigint[];
    chars bigint;
begin
    loop
        with front as (
            select id from floor_job where pending order by type, tenant, priority, id
            limit batch for no key update skip locked
        ), claimed as (
            update floor_job j
            set state = 'running', pending = false, attempt = attempt + 1, owner = 1, started_at = now()
            from front f where j.id = f.id
            returning j.id, case when reading then length(j.payload::text) end as chars
        )
        select array_agg(c.id), sum(c.chars) into taken, chars from claimed c;
        commit;
        exit when taken is null;
        update floor_job set state = 'succeeded', finished_at = now(), result = outcome
        where id = any (taken) and state = 'running';
        commit;
    end loop;
end $$
"""
_FILL = """
insert into floor_job (type, payload)
select 'bench.noop', case when %(padding)s = 0 then jsonb_build_object('n', n)
    else jsonb_build_object('n', n, 'padding',
        (select string_agg(md5(n::text || '.' || i), '') from generate_series(1, %(padding)s / 32) i)) end
from generate_series(1, %(jobs)s) n
"""
_LEFT = "select count(*) from floor_job where state <> 'succeeded' or attempt <> 1"


def drain_floor(dsn: str, jobs: int, *, padding: int = 0, result: int = 0) -> float:
    """Jobs a second, with so many characters in each payload and each result."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        for setting in ("enable_seqscan", "enable_hashjoin", "enable_mergejoin"):  # as the daemon's own sessions
            conn.execute("select set_config(%s, 'off', false)", [setting])
        conn.execute(_SETUP)
        conn.execute(_FILL, {"jobs": jobs, "padding": padding})
        outcome = json.dumps({"text": "0" * result}) if result else None
        conn.execute("checkpoint")
        began = time.monotonic()
        conn.execute("call floor_drain(%s, %s, %s)", [BATCH, outcome, padding > 0])
        took = time.monotonic() - began
        row = conn.execute(_LEFT).fetchone()
    assert row == (0,), "the floor left jobs undone"
    return jobs / took
