-- trigger_schedule: by name.
select dispatcher.trigger_schedule(%(name)s::text)
