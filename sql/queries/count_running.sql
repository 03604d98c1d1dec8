-- count_running: running jobs per type and tenant of all owners but this one (they only become fewer: others do not claim). Not of those of
-- another lease, whose leader does claim: no type is of two leases, and the limit over all types is of the replicas of one.
select j.type, j.tenant, count(*)::integer as running
from (select distinct named.id from dispatcher.claim c cross join lateral unnest(c.job_ids) as named (id)
      where c.owner <> %(owner)s and not exists (
          select from dispatcher.replica r join dispatcher.replica own on own.id = %(owner)s where r.id = c.owner and r.lease <> own.lease)) named
join dispatcher.job j on j.id = any(array[named.id])
where j.state = 'running' and j.owner <> %(owner)s
group by j.type, j.tenant
