-- get_documents: jobs as the HTTP API shows them, each as one JSON text, the newest first; times in UTC whatever the session's zone.
-- For their own tenant (own), unique keys are without the tenant that was put in front of them. Of other tenants than (tenants), if
-- these are given, nothing is read but that they are others': else the time that it takes would tell how large they are.
select j.id, coalesce(j.tenant, '') as tenant, j.state, row_to_json(d)::text as document
from dispatcher.jobs j cross join lateral (
    select j.id, j.type, j.tenant, j.state, j.priority, j.progress, j.progress_message, j.attempt, j.failures, j.max_attempts,
           extract(epoch from j.timeout)::double precision as timeout,
           case when %(own)s and starts_with(j.unique_key, length(j.tenant) || ':' || j.tenant || ':')
                then substr(j.unique_key, length(length(j.tenant) || ':' || j.tenant || ':') + 1) else j.unique_key end as unique_key,
           j.parent_id, j.owner, j.cancel_requested, j.timed_out,
           to_char(j.created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as created_at,
           to_char(j.run_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as run_at,
           to_char(j.started_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as started_at,
           to_char(j.finished_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') as finished_at,
           j.result_url, j.payload, j.result, j.errors) d
where (%(tenants)s::text[] is null or j.tenant = any(%(tenants)s::text[]))
  and j.id = any(%(ids)s::bigint[]) and (%(states)s::text[] is null or j.state = any(%(states)s::text[]))
order by j.id desc
