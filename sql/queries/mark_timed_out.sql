-- mark_timed_out: its time is over but its thread is not back: it stays running, holds its slot, and shows it, with its stack.
with o as materialized (
    select * from rows from (  -- noqa: PRS
        unnest(%(ids)s::bigint[], %(attempts)s::integer[]), jsonb_array_elements(%(errors)s::jsonb)
    ) as o (id, attempt, errors)
), free as materialized (
    select o.* from o join dispatcher.job j on j.id = any(array[o.id])
    where j.attempt = o.attempt and j.owner = %(owner)s and j.state = 'running' for no key update of j skip locked
)
update dispatcher.job j set timed_out = true, errors = dispatcher.add_errors(j.errors, j.attempt, o.errors)
from free o where j.id = any(array[o.id])
returning j.id, j.attempt
