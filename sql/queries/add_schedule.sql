-- add_schedule: adds it or changes it.
select dispatcher.add_schedule(%(name)s::text, %(cron)s::text, %(type)s::text, %(payload)s::jsonb, %(options)s::jsonb)
