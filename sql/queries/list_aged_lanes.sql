-- list_aged_lanes: as list_lanes, but each priority of a (type, tenant) by itself, with the priority that its first job has by now: one
-- point better for each (aging_s) that it has been due.
with recursive level as (
    select %(after_type)s::text collate "C" as type, %(after_tenant)s::text collate "C" as tenant, %(after_priority)s::integer as priority,
           0::bigint as id, now() as due, 0 as place
    union all
    select n.type, n.tenant, n.priority::integer, n.id, n.due, l.place + 1
    from level l cross join lateral (
        (select j.type, j.tenant, j.priority, j.id, coalesce(j.run_at, j.created_at) as due from dispatcher.job j
         where l.type <> all(%(skipped)s::text[]) and j.listed = 'pending'
           and (j.type, j.tenant, j.priority) > (l.type, l.tenant, l.priority)
         order by j.type, j.tenant, j.priority, j.id limit 1)
        union all
        (select j.type, j.tenant, j.priority, j.id, coalesce(j.run_at, j.created_at) as due from dispatcher.job j
         where l.type = any(%(skipped)s::text[]) and j.listed = 'pending' and j.type > l.type
         order by j.type, j.tenant, j.priority, j.id limit 1)) n
    where l.place < %(most)s
)
select l.type, l.tenant, l.priority, l.id,
       (l.priority - greatest(0, extract(epoch from now() - l.due)) / %(aging_s)s)::double precision as aged
from level l where l.place > 0
