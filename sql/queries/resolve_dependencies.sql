-- resolve_dependencies: who waits for a job that has ended, or was deleted, has seen it; answers those who waited, one for each edge.
with seen as materialized (
    (select d.job_id, d.after_id from unnest(%(ended)s::bigint[]) as e (id) join dispatcher.dependency d on d.after_id = e.id
     where d.outcome is null limit %(batch)s)
    union
    (select d.job_id, d.after_id from unnest(%(looked)s::bigint[]) as l (id) join dispatcher.dependency d on d.job_id = l.id
     where d.outcome is null)
)
update dispatcher.dependency d set outcome = coalesce(j.state, 'canceled')
from seen s left join dispatcher.job j on j.id = s.after_id
where d.job_id = s.job_id and d.after_id = s.after_id and d.outcome is null
  and (j.id is null or j.state in ('succeeded', 'partial', 'failed', 'canceled'))
returning d.job_id
