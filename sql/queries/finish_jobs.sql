-- finish_jobs: records final outcomes of an owner's attempts; a late one matches no row, nor one whose number a promoted
-- server, which had lost the claim, has given out again. It waits for a row lock no longer than lock_timeout; then
-- the caller sends finish_free_jobs.
-- "= any (array[…])" instead of "=", here and where else jobs are found by a list of ids: nothing can be joined by order on it, so
-- that no plan reads the whole index first, as one that was made when the table had a few rows did.
update dispatcher.job j
set state = o.state, finished_at = now(), result = nullif(o.result, 'null'), result_url = o.result_url,
    timed_out = false, failures = j.failures + o.failures,
    errors = case when coalesce(o.errors, 'null') = 'null' then j.errors else dispatcher.add_errors(j.errors, j.attempt, o.errors) end
from rows from (  -- noqa: PRS
    unnest(%(ids)s::bigint[], %(attempts)s::integer[], %(states)s::text[], %(failures)s::integer[],
           %(result_urls)s::text[]),
    jsonb_array_elements(%(results)s::jsonb), jsonb_array_elements(%(errors)s::jsonb)
) as o (id, attempt, state, failures, result_url, result, errors)
where j.id = any(array[o.id]) and j.attempt = o.attempt and j.owner = %(owner)s and j.state = 'running'
returning j.id, j.attempt, j.parent_id is not null or coalesce(j.followed, false) as marked
