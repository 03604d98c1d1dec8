-- release_jobs: jobs that this replica claimed and never started go back to pending, without using up a try; a job somebody
-- canceled meanwhile is canceled. A row that is locked stays, and is answered by its absence.
with given as materialized (
    select j.id from unnest(%(ids)s::bigint[], %(attempts)s::integer[]) as g (id, attempt)
    join dispatcher.job j on j.id = any(array[g.id])
    where j.attempt = g.attempt and j.state = 'running' and j.owner = %(owner)s
    for no key update of j skip locked
)
update dispatcher.job j
set state = case when j.cancel_requested then 'canceled' else 'pending' end,
    finished_at = case when j.cancel_requested then now() end, owner = null, started_at = null, timed_out = false
from given g where j.id = any(array[g.id]) and j.state = 'running'
returning j.id, j.attempt
