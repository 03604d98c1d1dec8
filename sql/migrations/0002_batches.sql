-- Batches and dependencies.

alter table dispatcher.job add column parent_id bigint;   -- the batch it belongs to
alter table dispatcher.job add column followed boolean;   -- others were enqueued after it

-- The open children of a batch are counted from here; `listed` changes only where other indexes change as well.
create index job_parent on dispatcher.job (parent_id, listed, id) where parent_id is not null;

-- One row beside each parent. Its lock orders who adds children, who cancels and who ends the batch.
create table dispatcher.batch (
    job_id bigint primary key,
    total integer not null,
    succeeded integer not null default 0,              -- exact together with the marks in dispatcher.follow_up
    partial integer not null default 0,
    failed integer not null default 0,
    canceled integer not null default 0,
    cancel_requested boolean not null default false,
    ended_at timestamptz,
    callback_id bigint                                 -- a job after it, which runs however it ends
) with (fillfactor = 50);

-- job_id runs after after_id. Stays as long as the job, whose executor may read its predecessors' results.
create table dispatcher.dependency (
    job_id bigint not null,
    after_id bigint not null,
    on_failure text not null check (on_failure in ('cancel', 'run')),
    outcome text,                                      -- the final state of after_id, once the leader has seen it
    primary key (job_id, after_id)
);
create index dependency_after on dispatcher.dependency (after_id, job_id);
create index dependency_open on dispatcher.dependency (job_id) where outcome is null;

-- Marks: "look at this job". Written in the very transaction in which a job with followers ends or opens again, or in
-- which a job is enqueued after others; removed by the leader in the transaction that has dealt with them.
create table dispatcher.follow_up (
    id bigint generated always as identity primary key,
    job_id bigint not null,
    parent_id bigint,
    was text,                                          -- its final state before, if any
    became text                                        -- its final state now, if any
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0,
        vacuum_truncate = false);
