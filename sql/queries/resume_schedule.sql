-- resume_schedule: by name.
select dispatcher.resume_schedule(%(name)s::text)
