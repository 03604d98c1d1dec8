-- share_aged_lanes: as share_lanes, by what jobs have gained by waiting. A lane is one priority of a (type, tenant) here, and `take`
-- holds for all lanes of a (type, tenant) together. What the jobs of a priority have gained is used by them in the order of
-- their turns: else a tenant's old backlog would keep the others of that priority waiting.
with lane as materialized (
    select * from unnest(%(types)s::text[], %(tenants)s::text[], %(takes)s::integer[], %(mosts)s::integer[],
                         %(after_priorities)s::integer[], %(after_ids)s::bigint[], %(until_priorities)s::integer[])
        with ordinality as l (type, tenant, take, most, after_priority, after_id, until_priority, place)
), front as materialized (
    select l.type, l.tenant, l.take, l.most, l.place as lane_place, j.priority, j.id,
           row_number() over (partition by l.type, l.tenant, j.priority order by j.id) as turn,
           j.priority - greatest(0, extract(epoch from now() - j.due))::double precision / %(aging_s)s as gained
    from lane l cross join lateral (
        select j.priority, j.id, coalesce(j.run_at, j.created_at) as due from dispatcher.job j
        where j.listed = 'pending' and j.type = l.type and j.tenant = l.tenant
          and (j.priority, j.id) > (l.after_priority, l.after_id) and j.priority <= l.until_priority
        order by j.priority, j.id limit least(l.take, %(room)s, %(depth)s)) j
), ranked as (
    select f.*, (row_number() over (partition by f.priority order by f.turn, f.lane_place))::integer as place_in_priority from front f
), aged as (
    select r.*, nth_value(r.gained, r.place_in_priority) over (
        partition by r.priority order by r.gained rows between unbounded preceding and unbounded following) as aged
    from ranked r
), within_tenant as (
    select a.*, row_number() over (partition by a.type, a.tenant order by a.aged, a.turn, a.id) as own_place from aged a
), within_type as (
    select w.*, row_number() over (partition by w.type order by w.aged, w.turn, w.lane_place) as place
    from within_tenant w where w.own_place <= w.take
), chosen as (
    select w.type, w.tenant, w.priority, w.lane_place from within_type w where w.place <= w.most
    order by w.aged, w.turn, w.lane_place limit %(room)s
)
select type, tenant, priority, count(*)::integer as take from chosen group by type, tenant, priority order by take, min(lane_place)
