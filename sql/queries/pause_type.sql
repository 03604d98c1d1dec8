-- pause_type: true if it was not paused before.
select dispatcher.pause(%(type)s::text)
