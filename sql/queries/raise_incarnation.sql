-- raise_incarnation: after the liveness lock was taken; no row: the replica was removed and must exit.
update dispatcher.replica r
set incarnation = r.incarnation + 1, leaving = false, backend_pid = pg_backend_pid(), server_started = pg_postmaster_start_time(),
    database_oid = (select d.oid from pg_database d where d.datname = current_database()),
    backend_start = (select a.backend_start from pg_stat_activity a where a.pid = pg_backend_pid())
where r.id = %(replica)s and dispatcher.holds_lock(dispatcher.liveness_lock(), r.id, pg_backend_pid())
returning r.incarnation
