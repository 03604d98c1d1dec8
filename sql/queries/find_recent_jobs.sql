-- find_recent_jobs: the newest jobs before an id that match, at most (limit), by a walk over the primary key that looks at (examine)
-- rows, and the id to go on before; null once there are no more. The last sum is made only for a page that is not full.
with page as materialized (
    select w.id from (
        select j.id, j.type, j.tenant, j.state, j.created_at, j.finished_at, j.errors from dispatcher.job j
        where j.id < %(before)s::bigint order by j.id desc limit %(examine)s::bigint) w
    where (%(states)s::text[] is null or w.state = any(%(states)s::text[]))
      and (%(type)s::text is null or w.type = %(type)s::text) and (%(tenant)s::text is null or w.tenant = %(tenant)s::text)
      and (%(kind)s::text is null or w.errors -> -1 ->> 'kind' = %(kind)s::text)
      and (%(since)s::timestamptz is null or coalesce(w.finished_at, w.created_at) >= %(since)s::timestamptz)
      and (%(until)s::timestamptz is null or coalesce(w.finished_at, w.created_at) < %(until)s::timestamptz)
    order by w.id desc limit %(limit)s::bigint
)
select array(select p.id from page p order by p.id desc) as ids,
       case when (select count(*) from page p) = %(limit)s::bigint then (select min(p.id) from page p)
            else (select case when count(*) = %(examine)s::bigint then min(w.id) end
                  from (select j.id from dispatcher.job j
                        where j.id < %(before)s::bigint order by j.id desc limit %(examine)s::bigint) w) end as next
