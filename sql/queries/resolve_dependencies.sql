-- resolve_dependencies: who waits for a job that has ended, or was deleted, has seen it; answers those who waited, one for each edge. An
-- edge that somebody holds locked is that of a job being retried, which will be looked at.
-- Of those who end, open is written so that no partial index tempts the planner while it believes the table to be empty.
update dispatcher.dependency d
set outcome = coalesce((select j.state from dispatcher.job j where j.id = d.after_id), 'canceled')
where d.ctid = any(
    array(
        select e.ctid from dispatcher.dependency e
        where e.after_id = any(%(ended)s::bigint[]) and coalesce(e.outcome, '') = '' and not exists (
            select from dispatcher.job j where j.id = any(array[e.after_id]) and j.state in ('scheduled', 'blocked', 'pending', 'running'))
        limit %(batch)s for no key update of e skip locked)
    || array(
        select l.ctid from dispatcher.dependency l
        where l.job_id = any(%(looked)s::bigint[]) and l.outcome is null and not exists (
            select from dispatcher.job j where j.id = any(array[l.after_id]) and j.state in ('scheduled', 'blocked', 'pending', 'running'))
        limit %(batch)s for no key update of l skip locked))
returning d.job_id
