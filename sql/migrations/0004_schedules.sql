-- Schedules: jobs by the calendar.

create table dispatcher.schedule (
    name text collate "C" primary key check (name ~ '^[A-Za-z0-9_.:/-]{1,200}$'),
    cron text not null,
    zone text not null default 'UTC',
    type text collate "C" not null,
    payload jsonb not null default '{}',
    options jsonb not null default '{}',
    catch_up text not null default 'one' check (catch_up in ('skip', 'one', 'all')),
    paused_at timestamptz,
    paused_by text,
    next_at timestamptz,                               -- null: the leader has yet to work it out
    last_at timestamptz,                               -- the due time that was fired last
    last_job_id bigint,
    error text,                                        -- why the leader cannot work it out
    created_at timestamptz not null default now(),
    changed_at timestamptz not null default now(),
    changed_by text not null default session_user
);
create index schedule_due on dispatcher.schedule (next_at) where paused_at is null and error is null;
