-- share_lanes: when the lanes hold more than there is room for, how many of each lane's first jobs come into the room, of a lane at
-- most its `take`, of a type at most its `most`. Order: priority, then turn (each lane's n-th job before any lane's n+1-th), then the
-- order in which the lanes are given: by age one lane would have every turn where there is room for one job. Who got least comes first.
with lane as materialized (
    select * from unnest(%(types)s::text[], %(tenants)s::text[], %(takes)s::integer[], %(mosts)s::integer[],
                         %(after_priorities)s::integer[], %(after_ids)s::bigint[])
        with ordinality as l (type, tenant, take, most, after_priority, after_id, place)
), front as materialized (
    select l.type, l.tenant, l.most, l.place as lane_place, j.priority,
           row_number() over (partition by l.type, l.tenant, j.priority order by j.id) as turn
    from lane l cross join lateral (
        select j.priority, j.id from dispatcher.job j
        where j.listed = 'pending' and j.type = l.type and j.tenant = l.tenant and (j.priority, j.id) > (l.after_priority, l.after_id)
        order by j.priority, j.id limit least(l.take, %(room)s, %(depth)s)) j
), within_type as (
    select f.*, row_number() over (partition by f.type order by f.priority, f.turn, f.lane_place) as place from front f
), chosen as (
    select w.type, w.tenant, w.lane_place from within_type w where w.place <= w.most
    order by w.priority, w.turn, w.lane_place limit %(room)s
)
select type, tenant, count(*)::integer as take from chosen group by type, tenant order by take, min(lane_place)
