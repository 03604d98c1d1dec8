-- find_pending_jobs: the newest before an id that match. Jumps from turn to turn (a type, a tenant, a priority) in the index of
-- the lanes, looks at the newest job of each, then at up to (examine) of those turns that can have a share in the newest (examine)
-- of all. It is compared and ordered by whole rows so that no other index will do.
with recursive turn as (
    (select j.type, j.tenant, j.priority from dispatcher.job j
     where j.listed = 'pending' and (%(type)s::text is null or j.type = %(type)s::text)
     order by j.type, j.tenant, j.priority limit 1)
    union all
    select n.type, n.tenant, n.priority
    from turn t cross join lateral (
        select j.type, j.tenant, j.priority from dispatcher.job j
        where j.listed = 'pending' and (j.type, j.tenant, j.priority) > (t.type, t.tenant, t.priority)
          and (%(type)s::text is null or j.type = %(type)s::text)
        order by j.type, j.tenant, j.priority limit 1) n
), newest as materialized (
    select t.type, t.tenant, t.priority
    from turn t cross join lateral (
        select j.type, j.tenant, j.priority, j.id from dispatcher.job j
        where j.listed = 'pending'
          and (j.type, j.tenant, j.priority, j.id) < (t.type, t.tenant, t.priority, %(before)s::bigint)
        order by j.type desc, j.tenant desc, j.priority desc, j.id desc limit 1) n
    where (%(tenant)s::text is null or t.tenant = %(tenant)s::text)
      and n.type = t.type and n.tenant = t.tenant and n.priority = t.priority
    order by n.id desc limit %(examine)s::bigint
), walk as materialized (
    select m.id
    from newest n cross join lateral (
        select j.type, j.tenant, j.priority, j.id from dispatcher.job j
        where j.listed = 'pending'
          and (j.type, j.tenant, j.priority, j.id) < (n.type, n.tenant, n.priority, %(before)s::bigint)
        order by j.type desc, j.tenant desc, j.priority desc, j.id desc limit %(examine)s::bigint) m
    where m.type = n.type and m.tenant = n.tenant and m.priority = n.priority
    order by m.id desc limit %(examine)s::bigint
), page as materialized (
    select w.id
    from walk k cross join lateral (
        select j.id, j.created_at, j.errors from dispatcher.job j where j.id = k.id offset 0) w
    where (%(kind)s::text is null or w.errors -> -1 ->> 'kind' = %(kind)s::text)
      and (%(since)s::timestamptz is null or w.created_at >= %(since)s::timestamptz)
      and (%(until)s::timestamptz is null or w.created_at < %(until)s::timestamptz)
    order by w.id desc limit %(limit)s::bigint
)
select array(select p.id from page p order by p.id desc) as ids,
       case when (select count(*) from page p) = %(limit)s::bigint then (select min(p.id) from page p)
            when (select count(*) from walk k) = %(examine)s::bigint then (select min(k.id) from walk k) end as next
