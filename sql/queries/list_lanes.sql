-- list_lanes: each (type, tenant) with a pending job, and the first one, by jumping from lane to lane in the index, not
-- by reading the jobs.
with recursive lane as (
    (select j.type, j.tenant, j.priority, j.id from dispatcher.job j
     where j.listed = 'pending' order by j.type, j.tenant, j.priority, j.id limit 1)
    union all
    select n.type, n.tenant, n.priority, n.id
    from lane l cross join lateral (
        select j.type, j.tenant, j.priority, j.id from dispatcher.job j
        where j.listed = 'pending' and (j.type, j.tenant) > (l.type, l.tenant)
        order by j.type, j.tenant, j.priority, j.id limit 1) n
)
select type, tenant, priority, id from lane
