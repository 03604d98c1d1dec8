-- write_progress: the latest progress of an owner's running attempts; passes by rows that somebody holds locked.
with p as materialized (
    select * from unnest(%(ids)s::bigint[], %(attempts)s::integer[], %(percents)s::real[], %(messages)s::text[])
        as p (id, attempt, percent, message)
), free as materialized (
    select p.* from p join dispatcher.job j on j.id = any(array[p.id])
    where j.attempt = p.attempt and j.owner = %(owner)s and j.state = 'running' for no key update of j skip locked
)
update dispatcher.job j set progress = p.percent, progress_message = p.message
from free p
where j.id = any(array[p.id]) and j.attempt = p.attempt and j.owner = %(owner)s and j.state = 'running'
returning j.id, j.attempt
