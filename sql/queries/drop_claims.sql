-- drop_claims: lists of which no job runs any more; a list that still names a running job of its owner stays, whatever the
-- owner believes: it is the only way to find that job.
delete from dispatcher.claim c
where c.id = any(%(claims)s::bigint[]) and not exists (
    select from unnest(c.job_ids) as named (id)
    join dispatcher.job j on j.id = named.id
    where j.owner = c.owner and j.state = 'running')
returning c.id
