-- find_jobs: the newest jobs before an id that match, at most (limit) of the (examine) that are looked at, and the id to go on before;
-- null once there are no more.
select m.ids, m.next
from dispatcher.match_jobs(
    row(%(type)s::text, %(tenant)s::text, %(states)s::text[], %(kind)s::text, null, %(since)s::timestamptz, %(until)s::timestamptz, null),
    %(before)s::bigint, %(limit)s::bigint, %(examine)s::bigint) m
