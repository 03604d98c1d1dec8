-- find_pending_jobs: the newest before an id that match. Jumps from turn to turn (a type, a tenant, a priority) in the index of
-- the lanes, looks at the newest job of each, then at up to (examine) of those turns that can have a share in the newest (examine)
-- of all. It is ordered by more than is needed so that no other index will do. A jump compares whole rows and nothing beside them: an
-- equality of the type, say, would be where its search in the index begins, each time anew. Null in place of the ids where there
-- are more than 20,000 turns, as with as many tenants: that takes 100 ms.
with recursive turn as (
    select f.type, f.tenant, f.priority, 1 as number
    from (select j.type, j.tenant, j.priority from dispatcher.job j
          where j.listed = 'pending'
            and (j.type, j.tenant, j.priority)
                >= (coalesce(%(type)s::text, ''), case when %(type)s::text is null then '' else coalesce(%(tenant)s::text, '') end, -32768)
          order by j.type, j.tenant, j.priority limit 1) f
    where (%(type)s::text is null or (f.type = %(type)s::text and (%(tenant)s::text is null or f.tenant = %(tenant)s::text)))
    union all
    select n.type, n.tenant, n.priority, t.number + 1
    from turn t cross join lateral (
        select j.type, j.tenant, j.priority from dispatcher.job j
        where j.listed = 'pending' and (j.type, j.tenant, j.priority) > (t.type, t.tenant, t.priority)
        order by j.type, j.tenant, j.priority limit 1) n
    where t.number <= 20000
      and (%(type)s::text is null or (n.type = %(type)s::text and (%(tenant)s::text is null or n.tenant = %(tenant)s::text)))
), newest as materialized (
    select t.type, t.tenant, t.priority
    from turn t cross join lateral (
        select j.id from dispatcher.job j
        where j.listed = 'pending'
          and j.type = t.type and j.tenant = t.tenant and j.priority >= t.priority
          and (j.priority, j.id) < (t.priority, %(before)s::bigint)
        order by j.priority desc, j.id desc limit 1) n
    where (%(tenant)s::text is null or t.tenant = %(tenant)s::text)
      and (select count(*) from turn c) <= 20000
    order by n.id desc limit %(examine)s::bigint
), walk as materialized (
    select m.id
    from newest n cross join lateral (
        select j.id from dispatcher.job j
        where j.listed = 'pending'
          and j.type = n.type and j.tenant = n.tenant and j.priority >= n.priority
          and (j.priority, j.id) < (n.priority, %(before)s::bigint)
        order by j.priority desc, j.id desc limit %(examine)s::bigint) m
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
select case when (select count(*) from turn c) <= 20000 then array(select p.id from page p order by p.id desc) end as ids,
       case when (select count(*) from page p) = %(limit)s::bigint then (select min(p.id) from page p)
            when (select count(*) from walk k) = %(examine)s::bigint then (select min(k.id) from walk k) end as next
