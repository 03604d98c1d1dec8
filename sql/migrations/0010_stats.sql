-- Statistics: what the replicas tally of the tries that they settle, by minute and by hour. Finished jobs stand in no index, so this
-- is how rates and durations can be told without a look at the jobs.

create table dispatcher.tally (
    grain text collate "C" not null check (grain in ('minute', 'hour')),
    at timestamptz not null,                           -- start of the period in which it was written, by this server's clock
    type text collate "C" not null,
    tenant text collate "C" not null default '',       -- '': all jobs of the type; else those of that tenant alone
    succeeded bigint not null default 0,
    partial bigint not null default 0,
    failed bigint not null default 0,
    canceled bigint not null default 0,
    retried bigint not null default 0,                 -- failed tries that are tried again
    ran bigint[] not null default '{}',                -- histograms: time in the executor, time from due to started; buckets as in
    waited bigint[] not null default '{}',             -- dispatcher/tally.py, without the empty ones at the end
    -- In this order the expired rows lie together at the front, and a reader looks up a tenant once a period.
    primary key (grain, at, tenant, type)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000, vacuum_truncate = false);

-- The latest of its writes that a replica's row knows: one that is sent again, as its answer was lost, adds nothing.
alter table dispatcher.replica add column told bigint not null default 0;

-- The sum of two histograms.
create function dispatcher.add_up(one bigint[], other bigint[]) returns bigint[]
immutable parallel safe language sql return array(
    select coalesce(u.a, 0) + coalesce(u.b, 0)
    from unnest(one, other) with ordinality as u (a, b, bucket) order by u.bucket);
