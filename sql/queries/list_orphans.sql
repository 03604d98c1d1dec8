-- list_orphans: running jobs of a vanished owner that nobody holds locked.
select j.id, j.type, j.tenant, j.priority, j.attempt, j.failures, j.max_attempts, j.created_at,
       case when j.timed_out then j.errors -> -1 end as noted
from (select distinct named.id from dispatcher.claim c cross join lateral unnest(c.job_ids) as named (id)
      where c.owner = %(owner)s) named
join dispatcher.job j on j.id = any(array[named.id])
where j.state = 'running' and j.owner = %(owner)s
order by named.id
for no key update of j skip locked
