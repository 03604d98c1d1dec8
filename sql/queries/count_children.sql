-- count_children: ended children are added to their batches; a batch that somebody holds locked is passed by. Answers those it added to.
update dispatcher.batch b
set succeeded = b.succeeded + e.succeeded, partial = b.partial + e.partial, failed = b.failed + e.failed, canceled = b.canceled + e.canceled
from unnest(%(ids)s::bigint[], %(succeeded)s::integer[], %(partial)s::integer[], %(failed)s::integer[], %(canceled)s::integer[])
    as e (id, succeeded, partial, failed, canceled)
cross join lateral (
    select l.ctid as place from dispatcher.batch l where l.job_id = e.id for no key update skip locked) f
where b.ctid = f.place
returning b.job_id
