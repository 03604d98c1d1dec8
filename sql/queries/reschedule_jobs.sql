-- reschedule_jobs: a try that ended without ending the job: scheduled after a pause, or pending at once. Where somebody asked to
-- cancel, that wins here, in the row, whatever the owner knew. Passes by rows that somebody holds locked.
with o as materialized (
    select * from rows from (  -- noqa: PRS
        unnest(%(ids)s::bigint[], %(attempts)s::integer[], %(delays_s)s::double precision[], %(failures)s::integer[]),
        jsonb_array_elements(%(errors)s::jsonb)
    ) as o (id, attempt, delay_s, failures, errors)
), free as materialized (
    select o.* from o join dispatcher.job j on j.id = any(array[o.id])
    where j.attempt = o.attempt and j.owner = %(owner)s and j.state = 'running' for no key update of j skip locked
)
update dispatcher.job j
set state = case when j.cancel_requested then 'canceled' when o.delay_s > 0 then 'scheduled' else 'pending' end,
    finished_at = case when j.cancel_requested then now() end,
    run_at = now() + make_interval(secs => o.delay_s), owner = null, started_at = null, timed_out = false,
    failures = j.failures + o.failures,
    errors = case when coalesce(o.errors, 'null') = 'null' then j.errors else dispatcher.add_errors(j.errors, j.attempt, o.errors) end
from free o
where j.id = any(array[o.id]) and j.attempt = o.attempt and j.owner = %(owner)s and j.state = 'running'
returning j.id, j.attempt, j.parent_id is not null or coalesce(j.followed, false) as marked
