-- show_replicas: every replica as people see it; alive: its own session holds its liveness lock (a rescue takes it, too);
-- leads: it holds its lease and the lease is held.
with held as (
    select l.classid, l.objid::integer as number, l.pid from pg_locks l
    where l.locktype = 'advisory' and l.objsubid = 2 and l.granted
      and l.classid in (dispatcher.liveness_lock()::oid, dispatcher.lease_lock()::oid)
      and l.database = (select d.oid from pg_database d where d.datname = current_database())
), busy as (
    select j.owner, count(*)::integer as running
    from (select distinct named.id from dispatcher.claim c cross join lateral unnest(c.job_ids) as named (id)) named
    join dispatcher.job j on j.id = any(array[named.id])
    where j.state = 'running' group by j.owner
)
select r.id, l.name as lease, r.host, r.pid, r.version, r.types, r.started_at,
       exists (select from held h where h.classid = dispatcher.liveness_lock()::oid and h.number = r.id
               and h.pid = r.backend_pid) as alive,
       exists (select from held h where h.classid = dispatcher.lease_lock()::oid and h.number = l.number and l.holder = r.id) as leads,
       coalesce(b.running, 0) as running
from dispatcher.replica r join dispatcher.lease l on l.number = r.lease left join busy b on b.owner = r.id
order by r.id
