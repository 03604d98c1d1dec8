-- get_progress: what subscribers of these jobs are told.
select j.id, j.state, j.attempt, j.progress, j.progress_message, j.cancel_requested from dispatcher.jobs j where j.id = any(%(ids)s::bigint[])
