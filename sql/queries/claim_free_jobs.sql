-- claim_free_jobs: as claim_jobs, passing by every row that somebody holds locked: it is left for a later round.
with lane as materialized (
    select * from unnest(%(types)s::text[], %(tenants)s::text[], %(takes)s::integer[], %(after_priorities)s::integer[],
                         %(after_ids)s::bigint[], %(until_priorities)s::integer[])
        as l (type, tenant, take, after_priority, after_id, until_priority)
), front as materialized (
    select j.id
    from lane l cross join lateral (
        select j.id from dispatcher.job j
        where j.listed = 'pending' and j.type = l.type and j.tenant = l.tenant and (j.priority, j.id) > (l.after_priority, l.after_id)
          and j.priority <= l.until_priority
        order by j.priority, j.id limit l.take
        for no key update skip locked) j
), taken as (
    update dispatcher.job j
    set state = 'running', attempt = j.attempt + 1, owner = %(owner)s, started_at = now()
    from front f where j.id = any(array[f.id]) and j.state = 'pending'
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
