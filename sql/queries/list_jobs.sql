-- list_jobs: these jobs, the newest first, less those whose state is no longer a wanted one.
select id, type, tenant, state, priority, payload, progress, progress_message, result, result_url, errors, attempt, failures,
       max_attempts, extract(epoch from timeout)::double precision as timeout_s, unique_key, created_at, run_at, started_at, finished_at, owner, cancel_requested, timed_out, parent_id
from dispatcher.jobs
where id = any(%(ids)s::bigint[]) and (%(states)s::text[] is null or state = any(%(states)s::text[]))
order by id desc
