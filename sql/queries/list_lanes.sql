-- list_lanes: each (type, tenant) with a pending job behind the one given, and its first job, by jumping from lane to lane in the index,
-- not by reading the jobs. Of a type to be skipped, which may have very many lanes, one only. At most (most), for a statement must end.
with recursive lane as (
    select %(after_type)s::text collate "C" as type, %(after_tenant)s::text collate "C" as tenant, 0::smallint as priority, 0::bigint as id, 0 as place
    union all
    select n.type, n.tenant, n.priority, n.id, l.place + 1
    from lane l cross join lateral (
        (select j.type, j.tenant, j.priority, j.id from dispatcher.job j
         where l.type <> all(%(skipped)s::text[]) and j.listed = 'pending' and (j.type, j.tenant) > (l.type, l.tenant)
         order by j.type, j.tenant, j.priority, j.id limit 1)
        union all
        (select j.type, j.tenant, j.priority, j.id from dispatcher.job j
         where l.type = any(%(skipped)s::text[]) and j.listed = 'pending' and j.type > l.type
         order by j.type, j.tenant, j.priority, j.id limit 1)) n
    where l.place < %(most)s
)
select type, tenant, priority, id from lane where place > 0
