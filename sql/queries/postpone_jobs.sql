-- postpone_jobs: jobs that still run in a process which ends in a moment, without a try used up: scheduled for later than that. Until
-- then they keep their owner, by which they count against their limits, and no retry by hand makes them start sooner. Where somebody
-- asked to cancel, the job stays running until that process is seen dead. Passes by rows that somebody holds locked.
with o as materialized (
    select * from unnest(%(ids)s::bigint[], %(attempts)s::integer[]) as o (id, attempt)
), free as materialized (
    select o.* from o join dispatcher.job j on j.id = any(array[o.id])
    where j.attempt = o.attempt and j.owner = %(owner)s and j.state = 'running' and not j.cancel_requested for no key update of j skip locked
)
update dispatcher.job j
set state = 'scheduled', run_at = now() + make_interval(secs => %(delay_s)s), started_at = null, timed_out = false
from free o
where j.id = any(array[o.id]) and j.attempt = o.attempt and j.state = 'running'
returning j.id, j.attempt
