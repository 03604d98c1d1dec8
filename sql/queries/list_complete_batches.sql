-- list_complete_batches: those whose children have all ended.
select b.job_id
from unnest(%(ids)s::bigint[]) as n (id) join dispatcher.batch b on b.job_id = n.id join dispatcher.job j on j.id = n.id
where b.ended_at is null and b.succeeded + b.partial + b.failed + b.canceled = b.total and j.state = 'running'
