-- find_lock_holder: who has used our tables for longest in a transaction that is still open.
select a.pid, coalesce(nullif(a.application_name, ''), 'no application name'), a.usename,
       extract(epoch from now() - a.xact_start)::integer as open_s
from pg_locks l join pg_class c on c.oid = l.relation join pg_stat_activity a on a.pid = l.pid
where c.relnamespace = 'dispatcher'::regnamespace and l.granted and l.pid <> pg_backend_pid()
  and l.database = (select d.oid from pg_database d where d.datname = current_database())
order by a.xact_start limit 1
