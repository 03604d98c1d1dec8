-- count_running: running jobs per type and tenant of all owners but this one (they only become fewer: others do not claim).
select j.type, j.tenant, count(*)::integer as running
from (select distinct named.id from dispatcher.claim c cross join lateral unnest(c.job_ids) as named (id)
      where c.owner <> %(owner)s) named
join dispatcher.job j on j.id = named.id
where j.state = 'running' and j.owner <> %(owner)s
group by j.type, j.tenant
