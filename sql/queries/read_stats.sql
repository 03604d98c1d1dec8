-- read_stats: what was tallied within the last minute, hour and day. A window slides: the period that is partly inside counts by that
-- part. A look for each period (offset 0 keeps it so in any session), never at the whole table, nor at any job.
with win as (
    select w.name, w.grain, w.periods, make_interval(secs => w.period_s) as period, p.began,
           1 - extract(epoch from now() - p.began)::double precision / w.period_s as part
    from (values ('minute', 'minute', 60, 1), ('hour', 'minute', 60, 60), ('day', 'hour', 3600, 24)) as w (name, grain, period_s, periods)
    cross join lateral (select date_trunc(w.grain, now(), 'UTC')) as p (began)
), tallied as materialized (
    select w.name, t.type, t.succeeded, t.partial, t.failed, t.canceled, t.retried, t.ran, t.waited,
           case when n.back = w.periods then w.part else 1 end as share
    from win w
    cross join lateral generate_series(0, w.periods) as n (back)
    cross join lateral (
        select t.type, t.succeeded, t.partial, t.failed, t.canceled, t.retried, t.ran, t.waited from dispatcher.tally t
        where t.grain = w.grain and t.at = w.began - n.back * w.period and t.tenant = %(tenant)s::text offset 0) t
), ended as (
    select t.name, t.type, sum(t.succeeded * t.share) as succeeded, sum(t.partial * t.share) as partial,
           sum(t.failed * t.share) as failed, sum(t.canceled * t.share) as canceled, sum(t.retried * t.share) as retried
    from tallied t group by t.name, t.type
), bucket as (
    select t.name, t.type, b.number, coalesce(sum(b.ran * t.share), 0) as ran, coalesce(sum(b.waited * t.share), 0) as waited
    from tallied t cross join lateral unnest(t.ran, t.waited) with ordinality as b (ran, waited, number)
    group by t.name, t.type, b.number
), histogram as (
    select b.name, b.type, array_agg(b.ran order by b.number) as ran, array_agg(b.waited order by b.number) as waited
    from bucket b group by b.name, b.type
)
select e.type, e.name, e.succeeded, e.partial, e.failed, e.canceled, e.retried, h.ran, h.waited
from ended e left join histogram h on h.type = e.type and h.name = e.name
order by e.type
