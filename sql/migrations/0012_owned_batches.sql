-- Batches of a job: what a job has enqueued for itself as a batch, and has to gather, is canceled with it, also where the job
-- sleeps at that time and none of its code runs.

alter table dispatcher.batch add column made_by bigint;  -- the job it is canceled with
create index batch_made_by on dispatcher.batch (made_by) where made_by is not null;

-- Makes a batch one of a job's own, in the transaction that enqueues it. False where the job was asked to stop before: then the
-- caller must not commit. A cancel that comes after waits for this transaction, and finds the batch.
create function dispatcher.own_batch(batch_id bigint, id bigint, attempt integer) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    asked boolean;
    row_xmin xid;
begin
    update dispatcher.job set checkpoint = checkpoint
    where id = own_batch.id and attempt = own_batch.attempt and state = 'running'
    returning cancel_requested, xmin into asked, row_xmin;
    perform dispatcher.check_still_running(id, attempt, row_xmin);
    update dispatcher.batch set made_by = own_batch.id where job_id = batch_id;
    return not asked;
end $$;

-- In the transaction of whoever cancels, not in the one that settles: that one holds rows of many jobs. Written so that no index but
-- that of made_by will do, however small the table was when the plan was made.
create function dispatcher.cancel_own_batches() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
begin
    perform dispatcher.cancel(b.job_id)
    from (select o.job_id from dispatcher.batch o
          where o.made_by = new.id and coalesce(o.ended_at, 'infinity') = 'infinity' and not o.cancel_requested
          order by o.job_id + 0) b;
    return null;
end $$;

create trigger canceled after update of state, cancel_requested on dispatcher.job for each row
when (new.attempt > 0
      and ((new.cancel_requested and not old.cancel_requested)
           or (new.state = 'canceled' and old.state in ('scheduled', 'pending', 'blocked'))))
execute function dispatcher.cancel_own_batches();

revoke all on function dispatcher.own_batch(bigint, bigint, integer), dispatcher.cancel_own_batches() from public;
