-- add_schedule: adds it or changes it.
select dispatcher.add_schedule(%(name)s, %(cron)s, %(type)s, %(payload)s::jsonb, %(options)s::jsonb)
