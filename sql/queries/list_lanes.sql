-- list_lanes: each (type, tenant) with a pending job, by jumping from lane to lane in the index, not by reading the jobs.
with recursive lane as (
    (select j.type, j.tenant from dispatcher.job j where j.listed = 'pending' order by j.type, j.tenant limit 1)
    union all
    select n.type, n.tenant
    from lane l cross join lateral (
        select j.type, j.tenant from dispatcher.job j
        where j.listed = 'pending' and (j.type, j.tenant) > (l.type, l.tenant)
        order by j.type, j.tenant limit 1) n
)
select type, tenant from lane
