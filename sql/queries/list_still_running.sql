-- list_still_running: of these attempts, the ones whose row still says running: busy, not stale.
select j.id, j.attempt
from unnest(%(ids)s::bigint[], %(attempts)s::integer[]) as o (id, attempt)
join dispatcher.job j on j.id = any(array[o.id])
where j.attempt = o.attempt and j.owner = %(owner)s and j.state = 'running'
