-- list_replicas: every replica with a row, and owners of claims without one; present: its own session holds its liveness
-- lock. A rescue takes that lock as well, for a moment; that is no sign of life.
-- at_home: it lived in this very database of this server as it runs; another one has this row because it is a copy.
with present as (
    select l.objid::integer as id, l.pid from pg_locks l
    where l.locktype = 'advisory' and l.classid = dispatcher.liveness_lock()::oid and l.objsubid = 2 and l.granted
      and l.database = (select d.oid from pg_database d where d.datname = current_database())
)
select r.id, r.incarnation, r.host, r.pid, r.boot_id, r.pid_namespace, r.process_start, r.lock_file, r.version, r.types, r.remote_types,
       r.started_at, exists (select from present p where p.id = r.id and p.pid = r.backend_pid) as present,
       coalesce(r.server_started = pg_postmaster_start_time()
                and r.database_oid = (select d.oid from pg_database d where d.datname = current_database()), false) as at_home
from dispatcher.replica r where r.lease = %(lease)s
union all
select distinct c.owner, 0, '', 0, null, null, null, null, '', '{}'::text[], '{}'::text[], null::timestamptz,
       exists (select from present p where p.id = c.owner), false
from dispatcher.claim c where not exists (select from dispatcher.replica r where r.id = c.owner)
order by 1
