"""What the database has in the end, and the trigger that writes down each change on the way there."""

from __future__ import annotations

import math
from datetime import datetime, timedelta

import psycopg
from psycopg.rows import class_row, dict_row

from tests.storm.history import BatchRow, Change, Row

SCHEMA = """
create schema storm;
create table storm.effect (job bigint not null, attempt integer not null);
create table storm.part (job bigint not null, part integer not null);
create table storm.change (
    number bigint generated always as identity, job bigint not null, before text, after text not null,
    attempt integer not null, at timestamptz not null, due timestamptz, session text not null,
    term bigint);
create function storm.note_change() returns trigger language plpgsql as $$
begin
    insert into storm.change (job, before, after, attempt, at, due, session, term)
    values (new.id, case when tg_op = 'UPDATE' then old.state end, new.state, new.attempt, clock_timestamp(),
            new.run_at, format('replica %s by session %s', new.owner, pg_backend_pid()),
            -- What a claim notes in the same statement: the term for which it takes itself.
            case when new.state = 'running' then
                (select max(c.term) from dispatcher.claim c where c.owner = new.owner and new.id = any(c.job_ids)) end);
    return null;
end $$;
create trigger storm_insert after insert on dispatcher.job for each row execute function storm.note_change();
create trigger storm_update after update on dispatcher.job for each row
    when (old.state is distinct from new.state or old.attempt is distinct from new.attempt)
    execute function storm.note_change();
"""


def prepare(conn: psycopg.Connection) -> None:
    """Makes the storm's own tables and triggers, with the role that owns the dispatcher's."""
    conn.execute(SCHEMA.encode())


def read_rows(conn: psycopg.Connection) -> dict[int, Row]:
    """Every job; `due` as it was when it was enqueued, as each try moves it on."""
    with conn.cursor(row_factory=class_row(Row)) as cursor:
        cursor.execute("""
            select j.id, j.type, j.tenant, j.state, j.attempt, j.failures, coalesce(j.max_attempts, 1) as max_attempts,
                   j.unique_key, j.parent_id, c.due, j.payload, j.result, j.errors
            from dispatcher.jobs j left join storm.change c on c.job = j.id and c.before is null""")
        return {row.id: row for row in cursor}


def read_changes(conn: psycopg.Connection) -> list[Change]:
    """Every change of a job's state or attempt."""
    with conn.cursor(row_factory=class_row(Change)) as cursor:
        return cursor.execute(
            "select number, job, before, after, attempt, at, due, session, term from storm.change order by number"
        ).fetchall()


def read_effects(conn: psycopg.Connection) -> list[tuple[int, int]]:
    """What jobs wrote in the transaction of their outcome."""
    return [(job, attempt) for job, attempt in conn.execute("select job, attempt from storm.effect")]


def read_parts(conn: psycopg.Connection) -> list[tuple[int, int]]:
    """What jobs wrote in the transactions of their checkpoints."""
    return [(job, part) for job, part in conn.execute("select job, part from storm.part")]


def read_batches(conn: psycopg.Connection) -> list[BatchRow]:
    """Every batch with its counts."""
    with conn.cursor(row_factory=dict_row) as cursor:
        cursor.execute("select id, state, total, succeeded, partial, failed, canceled from dispatcher.batches")
        return [BatchRow(row.pop("id"), row.pop("state"), row.pop("total"), row) for row in cursor]


def every_minute(after: datetime, until: datetime) -> list[datetime]:
    """The due times of an every-minute schedule."""
    first = after.replace(second=0, microsecond=0) + timedelta(minutes=1)
    return [first + timedelta(minutes=n) for n in range(math.floor((until - first) / timedelta(minutes=1)) + 1)]
