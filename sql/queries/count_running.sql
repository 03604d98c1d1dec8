-- count_running: running jobs per type and tenant of all owners but this one (they only become fewer: others do not claim). Of owners
-- under another lease, whose leader does claim, those of our types alone: a type that was moved here may still run there. What a
-- replica that ends has postponed counts for as long as it may still run.
with own as materialized (
    select r.lease, r.types from dispatcher.replica r where r.id = %(owner)s
)
select j.type, j.tenant, count(*)::integer as running
from (select distinct named.id,
             exists (select from dispatcher.replica r join own o on o.lease <> r.lease where r.id = c.owner) as under_another
      from dispatcher.claim c cross join lateral unnest(c.job_ids) as named (id)
      where c.owner <> %(owner)s) named
join dispatcher.job j on j.id = any(array[named.id])
where (j.state = 'running' or dispatcher.may_still_run(j.state, j.owner, j.run_at)) and j.owner <> %(owner)s
  and (not named.under_another or j.type = any(array(select unnest(o.types) from own o)))
group by j.type, j.tenant
