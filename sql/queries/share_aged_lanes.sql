-- share_aged_lanes: as share_lanes, by the priority that each job has by now. A lane is one priority of a (type, tenant) here, and `take`
-- holds for all lanes of a (type, tenant) together.
with lane as materialized (
    select * from unnest(%(types)s::text[], %(tenants)s::text[], %(takes)s::integer[], %(mosts)s::integer[],
                         %(after_priorities)s::integer[], %(after_ids)s::bigint[], %(until_priorities)s::integer[])
        as l (type, tenant, take, most, after_priority, after_id, until_priority)
), front as materialized (
    select l.type, l.tenant, l.take, l.most, j.priority, j.id,
           row_number() over (partition by l.type, l.tenant, j.priority order by j.id) as turn,
           j.priority - greatest(0, extract(epoch from now() - j.due)) / %(aging_s)s as aged
    from lane l cross join lateral (
        select j.priority, j.id, coalesce(j.run_at, j.created_at) as due from dispatcher.job j
        where j.listed = 'pending' and j.type = l.type and j.tenant = l.tenant
          and (j.priority, j.id) > (l.after_priority, l.after_id) and j.priority <= l.until_priority
        order by j.priority, j.id limit least(l.take, %(room)s, %(depth)s)) j
), within_tenant as (
    select f.*, row_number() over (partition by f.type, f.tenant order by f.aged, f.id) as own_place from front f
), within_type as (
    select w.*, row_number() over (partition by w.type order by floor(w.aged), w.turn, w.aged, w.id) as place
    from within_tenant w where w.own_place <= w.take
), chosen as (
    select w.type, w.tenant, w.priority from within_type w where w.place <= w.most
    order by floor(w.aged), w.turn, w.aged, w.id limit %(room)s
)
select type, tenant, priority, count(*)::integer as take from chosen group by type, tenant, priority
