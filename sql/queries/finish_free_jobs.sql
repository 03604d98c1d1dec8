-- finish_free_jobs: as finish_jobs, passing by every row that somebody holds locked.
with o as materialized (
    select * from rows from (  -- noqa: PRS
        unnest(%(ids)s::bigint[], %(attempts)s::integer[], %(states)s::text[], %(failures)s::integer[],
               %(result_urls)s::text[]),
        jsonb_array_elements(%(results)s::jsonb), jsonb_array_elements(%(errors)s::jsonb)
    ) as o (id, attempt, state, failures, result_url, result, errors)
), free as materialized (
    select o.* from o join dispatcher.job j on j.id = any(array[o.id])
    where j.attempt = o.attempt and j.owner = %(owner)s and j.state = 'running' for no key update of j skip locked
)
update dispatcher.job j
set state = o.state, finished_at = now(), result = nullif(o.result, 'null'), result_url = o.result_url,
    timed_out = false, failures = j.failures + o.failures,
    errors = case when coalesce(o.errors, 'null') = 'null' then j.errors else dispatcher.add_errors(j.errors, j.attempt, o.errors) end
from free o
where j.id = any(array[o.id]) and j.attempt = o.attempt and j.owner = %(owner)s and j.state = 'running'
returning j.id, j.attempt, j.parent_id is not null or coalesce(j.followed, false) as marked
