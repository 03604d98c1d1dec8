-- count_children: ended children are added to their batches; a batch that somebody holds locked is passed by. Answers those it added to.
with free as materialized (
    select b.job_id, e.succeeded, e.partial, e.failed, e.canceled
    from unnest(%(ids)s::bigint[], %(succeeded)s::integer[], %(partial)s::integer[], %(failed)s::integer[], %(canceled)s::integer[])
        as e (id, succeeded, partial, failed, canceled)
    join dispatcher.batch b on b.job_id = e.id
    for no key update of b skip locked
)
update dispatcher.batch b
set succeeded = b.succeeded + f.succeeded, partial = b.partial + f.partial, failed = b.failed + f.failed, canceled = b.canceled + f.canceled
from free f where b.job_id = f.job_id
returning b.job_id
