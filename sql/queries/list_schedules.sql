-- list_schedules: all, by name.
select name, cron, zone, type, payload, options, catch_up, paused_at, paused_by, next_at, last_at, last_job_id, error, created_at,
       changed_at, changed_by
from dispatcher.schedules order by name
