-- list_predecessors: the jobs after which a job was enqueued.
select id, type, tenant, state, priority, payload, progress, progress_message, result, result_url, errors, attempt, failures,
       max_attempts, extract(epoch from timeout)::double precision as timeout_s, unique_key, created_at, run_at, started_at, finished_at, owner, cancel_requested, timed_out, parent_id
from dispatcher.jobs where id in (select after_id from dispatcher.dependency where job_id = %(id)s) order by id
