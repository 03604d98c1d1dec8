-- find_running_jobs: the newest before an id that match, and the id to go on before. There is no index on them: the leader's lists name those that were
-- claimed, and open batches run on no replica. Both are few.
with named as materialized (
    select n.id from dispatcher.claim c cross join lateral unnest(c.job_ids) as n (id) where n.id < %(before)s::bigint
    union
    select b.job_id from dispatcher.batch b where b.ended_at is null and b.job_id < %(before)s::bigint
), page as materialized (
    select w.id
    from named n cross join lateral (
        select j.id, j.type, j.tenant, j.state, j.created_at, j.errors from dispatcher.job j where j.id = n.id offset 0) w
    where w.state = 'running'
      and (%(type)s::text is null or w.type = %(type)s::text) and (%(tenant)s::text is null or w.tenant = %(tenant)s::text)
      and (%(kind)s::text is null or w.errors -> -1 ->> 'kind' = %(kind)s::text)
      and (%(since)s::timestamptz is null or w.created_at >= %(since)s::timestamptz)
      and (%(until)s::timestamptz is null or w.created_at < %(until)s::timestamptz)
    order by w.id desc limit %(limit)s::bigint
)
select array(select p.id from page p order by p.id desc) as ids,
       case when (select count(*) from page p) = %(limit)s::bigint then (select min(p.id) from page p) end as next
