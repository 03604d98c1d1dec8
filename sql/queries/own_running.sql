-- own_running: what the database believes this replica to run.
select j.id, j.attempt, j.type, j.tenant
from (select distinct named.id from dispatcher.claim c cross join lateral unnest(c.job_ids) as named (id)
      where c.owner = %(owner)s) named
join dispatcher.job j on j.id = any(array[named.id])
where j.state = 'running' and j.owner = %(owner)s
