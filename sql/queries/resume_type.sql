-- resume_type: true if it was paused.
select dispatcher.resume(%(type)s::text)
