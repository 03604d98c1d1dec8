-- end_batches: a batch all of whose children have ended ends, once; one that somebody holds locked is passed by. Its row decides,
-- locked: who adds children or lets them run again holds the same lock.
with free as materialized (
    select b.job_id as id, b.total, b.succeeded, b.partial, b.failed, b.canceled, b.cancel_requested
    from dispatcher.batch b
    cross join lateral (
        select p.id from dispatcher.job p where p.id = b.job_id and p.state = 'running' for no key update skip locked) parent
    where b.job_id = any(%(ids)s::bigint[]) and b.ended_at is null and b.succeeded + b.partial + b.failed + b.canceled = b.total
    for no key update of b skip locked
), ended as (
    update dispatcher.batch b set ended_at = now() from free f where b.job_id = f.id
)
update dispatcher.job j
set state = case when f.canceled > 0 and (f.cancel_requested or f.canceled = f.total) then 'canceled'
                 when f.succeeded = f.total then 'succeeded'
                 when f.succeeded + f.partial = 0 then 'failed'
                 else 'partial' end,
    finished_at = now(),
    result = jsonb_build_object('total', f.total, 'succeeded', f.succeeded, 'partial', f.partial, 'failed', f.failed, 'canceled', f.canceled),
    errors = case when f.failed + f.canceled = 0 then j.errors else coalesce(j.errors, '[]') || jsonb_build_object(
        'at', now(), 'attempt', j.attempt, 'kind', 'batch',
        'message', format('of %%s jobs %%s failed and %%s were canceled', f.total, f.failed, f.canceled)) end
from free f
where j.id = any(array[f.id]) and j.state = 'running'
returning j.id, j.state
