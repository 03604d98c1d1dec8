-- get_job: one job as its readers see it.
select id, type, tenant, state, priority, payload, progress, progress_message, result, result_url, errors, attempt, failures,
       max_attempts, extract(epoch from timeout)::double precision as timeout_s, unique_key, created_at, run_at, started_at, finished_at, owner, cancel_requested, timed_out, parent_id
from dispatcher.jobs where id = %(id)s
