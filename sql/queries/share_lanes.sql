-- share_lanes: when the lanes hold more than there is room for, how many of each lane's first jobs come into the room, of a lane at
-- most its `take`, of a type at most its `most`. Order: priority, then turn (each lane's n-th job before any lane's n+1-th), then age.
with lane as materialized (
    select * from unnest(%(types)s::text[], %(tenants)s::text[], %(takes)s::integer[], %(mosts)s::integer[],
                         %(after_priorities)s::integer[], %(after_ids)s::bigint[])
        as l (type, tenant, take, most, after_priority, after_id)
), front as materialized (
    select l.type, l.tenant, l.most, j.priority, j.id,
           row_number() over (partition by l.type, l.tenant, j.priority order by j.id) as turn
    from lane l cross join lateral (
        select j.priority, j.id from dispatcher.job j
        where j.listed = 'pending' and j.type = l.type and j.tenant = l.tenant and (j.priority, j.id) > (l.after_priority, l.after_id)
        order by j.priority, j.id limit least(l.take, %(room)s, %(depth)s)) j
), within_type as (
    select f.*, row_number() over (partition by f.type order by f.priority, f.turn, f.id) as place from front f
), chosen as (
    select w.type, w.tenant from within_type w where w.place <= w.most order by w.priority, w.turn, w.id limit %(room)s
)
select type, tenant, count(*)::integer as take from chosen group by type, tenant
