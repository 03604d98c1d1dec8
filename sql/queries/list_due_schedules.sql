-- list_due_schedules: those that are to be worked out or fired first, by the database's clock. Nothing is fired twice where that
-- one went back a little; what was fired a day ahead of when it was added, changed or resumed is a clock's error that was put right.
select s.name, s.cron, s.zone, s.catch_up, s.type, s.next_at,
       greatest(s.since, case when s.last_at < s.since + interval '1 day' then s.last_at end) as since, clock_timestamp() as now,
       extract(epoch from s.next_at - clock_timestamp())::double precision as in_s, s.changed_at
from dispatcher.schedule s where s.paused_at is null and s.error is null and s.name <> all(%(besides)s::text[])
order by s.next_at nulls first limit %(batch)s
