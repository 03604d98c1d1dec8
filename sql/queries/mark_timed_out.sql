-- mark_timed_out: its time is over but its thread is not back: it stays running, holds its slot, and shows it.
with free as materialized (
    select j.id from unnest(%(ids)s::bigint[], %(attempts)s::integer[]) as o (id, attempt)
    join dispatcher.job j on j.id = any(array[o.id])
    where j.attempt = o.attempt and j.state = 'running' for no key update of j skip locked
)
update dispatcher.job j set timed_out = true from free f where j.id = any(array[f.id])
