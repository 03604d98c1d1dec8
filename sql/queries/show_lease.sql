-- show_lease: the lease as people see it; held says whether its lock is taken right now.
select l.name, l.term, l.holder, l.taken_at, r.host, r.pid, r.version,
       exists (select from pg_locks k where k.locktype = 'advisory' and k.classid = dispatcher.lease_lock()::oid
               and k.objid = l.number::oid and k.objsubid = 2 and k.granted
               and k.database = (select d.oid from pg_database d where d.datname = current_database())) as held
from dispatcher.lease l left join dispatcher.replica r on r.id = l.holder
where l.name = %(name)s
