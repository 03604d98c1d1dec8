-- remove_replica: only once none of its jobs runs; its claims go with it.
with gone as (
    delete from dispatcher.replica r
    where r.id = %(replica)s and not exists (
        select from dispatcher.claim c cross join lateral unnest(c.job_ids) as named(id)
        join dispatcher.job j on j.id = any(array[named.id]) and j.owner = c.owner and j.state = 'running'
        where c.owner = r.id)
    returning r.id
), claims as (
    delete from dispatcher.claim c where c.owner = %(replica)s and not exists (
        select from unnest(c.job_ids) as named(id) join dispatcher.job j on j.id = any(array[named.id])
        where j.owner = c.owner and j.state = 'running')
)
select id from gone
