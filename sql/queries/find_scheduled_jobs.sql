-- find_scheduled_jobs: the newest before an id that match. Their index has another order, so all are read; null in place of the ids
-- where there are more than (examine).
with walk as materialized (
    select j.id, j.type, j.tenant, j.created_at, j.errors from dispatcher.job j
    where j.listed = 'scheduled' order by j.run_at limit %(examine)s::bigint
), page as materialized (
    select w.id from walk w
    where w.id < %(before)s::bigint
      and (%(type)s::text is null or w.type = %(type)s::text) and (%(tenant)s::text is null or w.tenant = %(tenant)s::text)
      and (%(kind)s::text is null or w.errors -> -1 ->> 'kind' = %(kind)s::text)
      and (%(since)s::timestamptz is null or w.created_at >= %(since)s::timestamptz)
      and (%(until)s::timestamptz is null or w.created_at < %(until)s::timestamptz)
    order by w.id desc limit %(limit)s::bigint
)
select case when (select count(*) from walk w) < %(examine)s::bigint then array(select p.id from page p order by p.id desc) end as ids,
       case when (select count(*) from page p) = %(limit)s::bigint then (select min(p.id) from page p) end as next
