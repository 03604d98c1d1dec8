-- list_complete_batches: those whose children have all ended.
select b.job_id
from dispatcher.batch b
where b.job_id = any(%(ids)s::bigint[]) and b.ended_at is null and b.succeeded + b.partial + b.failed + b.canceled = b.total
  and (select j.state from dispatcher.job j where j.id = b.job_id) = 'running'
