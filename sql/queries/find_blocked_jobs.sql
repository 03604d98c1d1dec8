-- find_blocked_jobs: the newest before an id that match, by a walk over the dependencies whose outcome is open.
with walk as materialized (
    select d.job_id from dispatcher.dependency d
    where d.outcome is null and d.job_id < %(before)s::bigint order by d.job_id desc limit %(examine)s::bigint
), page as materialized (
    select w.id
    from (select distinct k.job_id from walk k) k cross join lateral (
        select j.id, j.type, j.tenant, j.state, j.created_at, j.errors from dispatcher.job j where j.id = k.job_id offset 0) w
    where w.state = 'blocked'
      and (%(type)s::text is null or w.type = %(type)s::text) and (%(tenant)s::text is null or w.tenant = %(tenant)s::text)
      and (%(kind)s::text is null or w.errors -> -1 ->> 'kind' = %(kind)s::text)
      and (%(since)s::timestamptz is null or w.created_at >= %(since)s::timestamptz)
      and (%(until)s::timestamptz is null or w.created_at < %(until)s::timestamptz)
    order by w.id desc limit %(limit)s::bigint
)
select array(select p.id from page p order by p.id desc) as ids,
       case when (select count(*) from page p) = %(limit)s::bigint then (select min(p.id) from page p)
            when (select count(*) from walk k) = %(examine)s::bigint then (select min(k.job_id) from walk k) end as next
