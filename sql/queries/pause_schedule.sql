-- pause_schedule: by name.
select dispatcher.pause_schedule(%(name)s::text)
