-- count_by_state: jobs per type and state, those that succeeded left out. At most (most) rows of each kind are looked at, the pending
-- ones of each type, so that it stays quick whatever waits. Of one tenant only what can be found without a look at those of others:
-- pending and running ones.
select t.name, 'pending' as state, p.jobs
from dispatcher.type t cross join lateral (
    select count(*) as jobs
    from (select 1 as one from dispatcher.job j
          where j.listed = 'pending' and j.type = t.name and (%(tenant)s::text is null or j.tenant = %(tenant)s::text)
          limit %(most)s::bigint) counted) p
where p.jobs > 0
union all
select s.type, 'scheduled', count(*)
from (select j.type from dispatcher.job j where %(tenant)s::text is null and j.listed = 'scheduled' order by j.run_at limit %(most)s::bigint) s
group by s.type
union all
select j.type, 'running', count(*)
from (select distinct named.id from dispatcher.claim c cross join lateral unnest(c.job_ids) as named (id)) named
join dispatcher.job j on j.id = any(array[named.id])
where j.state = 'running' and (%(tenant)s::text is null or j.tenant = %(tenant)s::text)
group by j.type
union all
select d.type, d.state, count(*)
from (select j.type, j.state from dispatcher.job j where %(tenant)s::text is null and j.listed = 'troubled' order by j.id desc limit %(most)s::bigint) d
group by d.type, d.state
union all
select j.type, 'blocked', count(*)
from (select distinct w.job_id
      from (select d.job_id from dispatcher.dependency d where %(tenant)s::text is null and d.outcome is null limit %(most)s::bigint) w) waiting
join dispatcher.job j on j.id = any(array[waiting.job_id])
where j.state = 'blocked'
group by j.type
