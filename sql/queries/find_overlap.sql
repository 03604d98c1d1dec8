-- find_overlap: a type of ours that a replica of another lease serves as well, which lives or is about to: two leaders would
-- claim it.
select l.name, t.type
from dispatcher.replica r
join dispatcher.lease l on l.number = r.lease
cross join lateral unnest(r.types) as t (type)
where r.lease <> %(lease)s and t.type = any(%(types)s::text[])
  and (dispatcher.holds_lock(dispatcher.liveness_lock(), r.id, r.backend_pid)
       or (r.incarnation = 0 and r.started_at > now() - interval '1 minute'))
order by l.name, t.type limit 1
