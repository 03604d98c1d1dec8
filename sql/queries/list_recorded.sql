-- list_recorded: of these attempts, whose answer was lost, the ones that were recorded all the same: a failure by its error, which
-- outlives the next try (the rescuer's own are crashes), any other end by the state. What was put back has no owner.
select o.id, o.attempt
from unnest(%(ids)s::bigint[], %(attempts)s::integer[], %(states)s::text[], %(failures)s::integer[]) as o (id, attempt, state, failures)
join dispatcher.job j on j.id = any(array[o.id])
where (o.failures = 0 and j.attempt = o.attempt and coalesce(j.owner, %(owner)s) = %(owner)s and j.state = o.state)
   or (o.failures > 0 and exists (
       select from jsonb_array_elements(j.errors) e
       where e -> 'attempt' = to_jsonb(o.attempt) and e ->> 'kind' <> 'crash'))
