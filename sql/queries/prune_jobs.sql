-- prune_jobs: one page of the walk over the primary key: finished jobs past their retention go; locked ones wait for the
-- next walk, and so do those whose result an unfinished job was promised, and those of an open batch. Ids grow with creation, so
-- the walk may stop at the first page that holds jobs too young to have expired. `stored` are those whose result is in the store.
with page as materialized (
    select j.id, j.created_at, j.state, j.finished_at from dispatcher.job j where j.id > %(after)s order by j.id limit %(page)s
), expired as materialized (
    select j.id, j.followed from page p join dispatcher.job j on j.id = any(array[p.id])
    where ((j.state = 'succeeded' and j.finished_at < now() - %(keep_succeeded)s::interval)
           or (j.state in ('failed', 'partial', 'canceled') and j.finished_at < now() - %(keep_failed)s::interval))
      and (j.followed is not true or not exists (
          select from dispatcher.dependency d join dispatcher.job f on f.id = any(array[d.job_id])
          where d.after_id = any(array[j.id]) and f.state in ('scheduled', 'blocked', 'pending', 'running')))
      and (j.parent_id is null or coalesce(
          (select b.ended_at is not null from dispatcher.batch b where b.job_id = j.parent_id), true))
    for update of j skip locked
), batches as materialized (  -- their rows go with their jobs
    select b.job_id as id from expired e join dispatcher.batch b on b.job_id = e.id for update of b skip locked
), gone as (
    delete from dispatcher.job j using expired e
    where j.id = any(array[e.id]) and (j.type <> 'batch' or j.id in (select b.id from batches b))
      and (e.followed is not true or not dispatcher.is_awaited(e.id))  -- enqueued since this statement began, before we had the lock
    returning j.id, j.result_url
)
select (select max(p.id) from page p) as last_id,
       (select count(*)::integer from gone) as pruned,
       array(select g.id from gone g where g.result_url is not null) as stored,
       (select min(p.created_at) from page p) > now() - least(%(keep_succeeded)s::interval, %(keep_failed)s::interval) as young
