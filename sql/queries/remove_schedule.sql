-- remove_schedule: by name.
select dispatcher.remove_schedule(%(name)s::text)
