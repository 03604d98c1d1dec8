-- drop_claims: lists of which no job runs any more. Where the owner let go of a job in doubt its list stays as long as it names a
-- running job of its owner, whatever the owner believes: it is the only way to find that job.
delete from dispatcher.claim c
where c.id = any(%(claims)s::bigint[]) and (not c.id = any(%(doubted)s::bigint[]) or not exists (
    select from unnest(c.job_ids) as named (id)
    join dispatcher.job j on j.id = any(array[named.id])
    where j.owner = c.owner and j.state = 'running'))
returning c.id
