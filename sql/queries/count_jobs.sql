-- count_jobs: unfinished jobs per type and state, and the age of the oldest pending one; the cost grows with what waits.
select j.type, 'pending' as state, count(*)::bigint as jobs,
       extract(epoch from now() - min(coalesce(j.run_at, j.created_at)))::double precision as oldest_s
from dispatcher.job j where j.listed = 'pending' group by j.type
union all
select j.type, 'scheduled', count(*)::bigint, null from dispatcher.job j where j.listed = 'scheduled' group by j.type
union all
select j.type, 'running', count(*)::bigint, null
from (select distinct named.id from dispatcher.claim c cross join lateral unnest(c.job_ids) as named (id)) named
join dispatcher.job j on j.id = any(array[named.id]) where j.state = 'running' group by j.type
union all
select j.type, j.state, count(*)::bigint, null from dispatcher.job j where j.listed = 'troubled' group by j.type, j.state
union all
select j.type, 'blocked', count(*)::bigint, null
from (select distinct d.job_id from dispatcher.dependency d where d.outcome is null) waiting
join dispatcher.job j on j.id = any(array[waiting.job_id]) where j.state = 'blocked' group by j.type
union all
select 'batch', 'running', count(*)::bigint, null from dispatcher.batch b where b.ended_at is null having count(*) > 0
