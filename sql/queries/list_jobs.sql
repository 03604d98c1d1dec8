-- list_jobs: the newest first, before a given id.
select id, type, tenant, state, priority, payload, progress, progress_message, result, result_url, errors, attempt, failures,
       max_attempts, extract(epoch from timeout)::double precision as timeout_s, unique_key, created_at, run_at, started_at, finished_at, owner, cancel_requested, timed_out, parent_id
from dispatcher.jobs
where (%(type)s::text is null or type = %(type)s::text) and (%(state)s::text is null or state = %(state)s::text)
  and (%(tenant)s::text is null or tenant = %(tenant)s::text) and (%(before)s::bigint is null or id < %(before)s::bigint)
order by id desc limit %(limit)s
