-- fire_schedule: enqueues a job for each of the due times and moves on, once: whoever comes second finds another next_at. A locked
-- row is passed by. Answers how many are new.
with due as materialized (
    select s.name, s.type, s.payload, s.options from dispatcher.schedule s
    where s.name = %(name)s and s.next_at = %(due)s and s.cron = %(cron)s and s.zone = %(zone)s and s.paused_at is null and s.error is null
    for no key update skip locked
), job as materialized (
    select f.at, e.id, e.created
    from due d cross join unnest(%(fires)s::timestamptz[]) as f (at)
    cross join lateral dispatcher.enqueue_unique(d.type, d.payload, d.options || jsonb_build_object('run_at', f.at)) e
)
update dispatcher.schedule s
set next_at = %(next_at)s, last_at = coalesce((select max(job.at) from job), s.last_at),
    last_job_id = coalesce((select max(job.id) from job), s.last_job_id)
from due d where s.name = d.name
returning (select count(*) from job where job.created)::integer as fired
