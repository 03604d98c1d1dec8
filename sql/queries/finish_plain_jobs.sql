-- finish_plain_jobs: as finish_jobs for those that succeeded and left no result, by far the most frequent end. It answers in one
-- row, and names the recorded only where some were not.
with done as (
    update dispatcher.job j
    set state = 'succeeded', finished_at = now(), result = null, result_url = null, timed_out = false
    from unnest(%(ids)s::bigint[], %(attempts)s::integer[]) as o (id, attempt)
    where j.id = any(array[o.id]) and j.attempt = o.attempt and j.owner = %(owner)s and j.state = 'running'
    returning j.id, j.attempt, j.parent_id is not null or coalesce(j.followed, false) as marked
)
select count(*) = cardinality(%(ids)s::bigint[]) as all_done, coalesce(bool_or(d.marked), false) as marked,
       case when count(*) < cardinality(%(ids)s::bigint[]) then array_agg(d.id) end as ids,
       case when count(*) < cardinality(%(ids)s::bigint[]) then array_agg(d.attempt) end as attempts
from done d
