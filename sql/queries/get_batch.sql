-- get_batch: a batch and its exact counts.
select id, tenant, state, type, total, scheduled, blocked, pending, running, succeeded, partial, failed, canceled, cancel_requested,
       callback_id, created_at, finished_at
from dispatcher.batches where id = %(id)s
