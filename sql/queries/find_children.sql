-- find_children: the newest children of a batch before an id that match. Their index is ordered by `listed` first: the newest
-- (examine) of each of its values, of which the newest (examine) of all are looked at. It is compared and ordered by more than is
-- needed so that no other index will do.
with walk as materialized (
    select c.id from (
        (select j.id from dispatcher.job j
         where j.parent_id = %(parent)s::bigint and j.listed is null and j.id < %(before)s::bigint
         order by j.listed desc, j.id desc limit %(examine)s::bigint)
        union all
        select n.id
        from (values ('pending'), ('scheduled'), ('troubled')) as g (listed) cross join lateral (
            select j.id from dispatcher.job j
            where j.parent_id = %(parent)s::bigint
              and (j.listed, j.id) < (g.listed, %(before)s::bigint) and j.listed >= g.listed
            order by j.listed desc, j.id desc limit %(examine)s::bigint) n) c
    order by c.id desc limit %(examine)s::bigint
), page as materialized (
    select w.id
    from walk k cross join lateral (
        select j.id, j.type, j.tenant, j.state, j.created_at, j.finished_at, j.errors
        from dispatcher.job j where j.id = k.id offset 0) w
    where (%(states)s::text[] is null or w.state = any(%(states)s::text[]))
      and (%(type)s::text is null or w.type = %(type)s::text) and (%(tenant)s::text is null or w.tenant = %(tenant)s::text)
      and (%(kind)s::text is null or w.errors -> -1 ->> 'kind' = %(kind)s::text)
      and (%(since)s::timestamptz is null or coalesce(w.finished_at, w.created_at) >= %(since)s::timestamptz)
      and (%(until)s::timestamptz is null or coalesce(w.finished_at, w.created_at) < %(until)s::timestamptz)
    order by w.id desc limit %(limit)s::bigint
)
select array(select p.id from page p order by p.id desc) as ids,
       case when (select count(*) from page p) = %(limit)s::bigint then (select min(p.id) from page p)
            when (select count(*) from walk k) = %(examine)s::bigint then (select min(k.id) from walk k) end as next
