-- ask_overdue_owners: running jobs past timeout and grace by the database's clock: each living owner is asked to look. Only
-- the owner knows whether the thread is back, so nobody else settles its jobs.
select overdue.owner, pg_notify('dispatcher_replica_' || overdue.owner, 'check')
from (
    select distinct j.owner
    from (select distinct named.id from dispatcher.claim c cross join lateral unnest(c.job_ids) as named (id)) named
    join dispatcher.job j on j.id = any(array[named.id])
    left join dispatcher.type t on t.name = j.type
    where j.state = 'running'
      and j.started_at < now() - make_interval(secs => coalesce(j.timeout_s, t.timeout_s, 0) + %(grace_s)s)
) overdue
