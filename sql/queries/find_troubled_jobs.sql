-- find_troubled_jobs: as find_recent_jobs, among failed, partial and canceled jobs only, by their own index.
with page as materialized (
    select w.id from (
        select j.id, j.type, j.tenant, j.state, j.finished_at, j.errors from dispatcher.job j
        where j.listed = 'troubled' and j.id < %(before)s::bigint order by j.id desc limit %(examine)s::bigint) w
    where w.state = any(%(states)s::text[])
      and (%(type)s::text is null or w.type = %(type)s::text) and (%(tenant)s::text is null or w.tenant = %(tenant)s::text)
      and (%(kind)s::text is null or w.errors -> -1 ->> 'kind' = %(kind)s::text)
      and (%(since)s::timestamptz is null or w.finished_at >= %(since)s::timestamptz)
      and (%(until)s::timestamptz is null or w.finished_at < %(until)s::timestamptz)
    order by w.id desc limit %(limit)s::bigint
)
select array(select p.id from page p order by p.id desc) as ids,
       case when (select count(*) from page p) = %(limit)s::bigint then (select min(p.id) from page p)
            else (select case when count(*) = %(examine)s::bigint then min(w.id) end
                  from (select j.id from dispatcher.job j
                        where j.listed = 'troubled' and j.id < %(before)s::bigint
                        order by j.id desc limit %(examine)s::bigint) w) end as next
