-- claim_jobs: pending becomes running. Run on the lease session only: a session that lost the lease is gone and cannot commit
-- this. It starts behind (after_priority, after_id) in each lane, past the index entries of jobs claimed before, which no vacuum
-- removes while anyone's transaction stays open. It waits for a row lock no longer than lock_timeout; then the caller sends
-- claim_free_jobs, which costs a sixth more. A row found by its place (ctid) is the one that was read, or has been changed since:
-- then its newest version must still be pending.
with lane as materialized (
    select * from unnest(%(types)s::text[], %(tenants)s::text[], %(takes)s::integer[], %(after_priorities)s::integer[],
                         %(after_ids)s::bigint[], %(until_priorities)s::integer[])
        as l (type, tenant, take, after_priority, after_id, until_priority)
), front as materialized (
    select j.ctid
    from lane l cross join lateral (
        select j.ctid from dispatcher.job j
        where j.listed = 'pending' and j.type = l.type and j.tenant = l.tenant and (j.priority, j.id) > (l.after_priority, l.after_id)
          and j.priority <= l.until_priority
        order by j.priority, j.id limit l.take) j
), taken as (
    update dispatcher.job j
    set state = 'running', attempt = j.attempt + 1, owner = %(owner)s, started_at = now()
    where j.ctid = any(array(select f.ctid from front f)) and j.state = 'pending'
    returning j.id, j.type, j.tenant, j.priority, j.attempt, j.failures, j.max_attempts, j.timeout_s, j.created_at, j.parent_id,
              j.payload::text as payload, j.checkpoint::text as checkpoint,
              extract(epoch from now() - coalesce(j.run_at, j.created_at))::double precision as waited_s
), noted as (
    insert into dispatcher.claim (owner, term, job_ids)
    select %(owner)s, %(term)s, array_agg(t.id) from taken t having count(*) > 0
    returning id
)
select t.id, t.type, t.tenant, t.priority, t.attempt, t.failures, t.max_attempts, t.timeout_s, t.created_at, t.payload,
       t.checkpoint, t.waited_s, n.id as claim, t.parent_id
from taken t cross join noted n order by t.priority, t.id
