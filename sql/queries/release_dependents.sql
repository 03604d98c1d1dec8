-- release_dependents: blocked becomes pending, or scheduled where its time has not come, or canceled where a predecessor broke it; a row
-- that somebody holds locked is passed by, and so is one that has come to wait again.
with free as materialized (
    select j.id, r.broken_by
    from unnest(%(ids)s::bigint[], %(broken_by)s::bigint[]) as r (id, broken_by) join dispatcher.job j on j.id = any(array[r.id])
    where j.state = 'blocked' and case
        when r.broken_by is null then not exists (
            select from dispatcher.dependency d where d.job_id = r.id and d.outcome is null)
        else exists (
            select from dispatcher.dependency d where d.job_id = r.id and d.after_id = r.broken_by and d.outcome is not null) end
    for no key update of j skip locked
)
update dispatcher.job j
set state = case when f.broken_by is not null then 'canceled' when j.run_at > now() then 'scheduled' else 'pending' end,
    run_at = greatest(j.run_at, now()),
    finished_at = case when f.broken_by is not null then now() end,
    errors = case when f.broken_by is null then j.errors else coalesce(j.errors, '[]') || jsonb_build_object(
        'at', now(), 'attempt', j.attempt, 'kind', 'dependency',
        'message', 'job ' || f.broken_by || ', after which this one was to run, did not succeed') end
from free f
where j.id = any(array[f.id]) and j.state = 'blocked'
returning j.id, j.state
