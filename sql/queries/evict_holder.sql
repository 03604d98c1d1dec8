-- evict_holder: ends the very session that was seen silent: same pid, same start, nothing done since, lock still held,
-- and not idle (an idle one is ended by the server itself).
select pg_terminate_backend(a.pid)
from pg_stat_activity a join pg_locks l on l.pid = a.pid
where a.pid = %(pid)s and a.backend_start = %(backend_start)s and a.state_change = %(state_change)s
  and l.locktype = 'advisory' and l.classid = dispatcher.lease_lock()::oid and l.objid = %(lease)s::oid
  and l.objsubid = 2 and l.granted and l.database = (select d.oid from pg_database d where d.datname = current_database())
