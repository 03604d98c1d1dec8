-- list_aged_lanes: as list_lanes, but each priority of a (type, tenant) by itself, with the priority that its first job has by now: one
-- point better for each (aging_s) that it has been due.
with recursive level as (
    (select j.type, j.tenant, j.priority, j.id, coalesce(j.run_at, j.created_at) as due from dispatcher.job j
     where j.listed = 'pending' order by j.type, j.tenant, j.priority, j.id limit 1)
    union all
    select n.type, n.tenant, n.priority, n.id, n.due
    from level l cross join lateral (
        select j.type, j.tenant, j.priority, j.id, coalesce(j.run_at, j.created_at) as due from dispatcher.job j
        where j.listed = 'pending' and (j.type, j.tenant, j.priority) > (l.type, l.tenant, l.priority)
        order by j.type, j.tenant, j.priority, j.id limit 1) n
)
select l.type, l.tenant, l.priority, l.id,
       (l.priority - greatest(0, extract(epoch from now() - l.due)) / %(aging_s)s)::double precision as aged
from level l
