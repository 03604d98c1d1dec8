-- list_ready: the blocked jobs that need not wait any longer: every predecessor has ended, or one ended badly that should not have.
select j.id, d.broken_by
from unnest(%(ids)s::bigint[]) as b (id) join dispatcher.job j on j.id = any(array[b.id])
cross join lateral (
    select coalesce(bool_or(d.outcome is null), false) as waits,
           min(d.after_id) filter (where d.on_failure = 'cancel' and d.outcome in ('failed', 'canceled')) as broken_by
    from dispatcher.dependency d where d.job_id = b.id) d
where j.state = 'blocked' and (d.broken_by is not null or not d.waits)
