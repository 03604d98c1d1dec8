-- end_own_session: an earlier session of this very replica, cut off but not yet noticed by the server.
select pg_terminate_backend(a.pid)
from dispatcher.replica r join pg_stat_activity a on a.pid = r.backend_pid and a.backend_start = r.backend_start
where r.id = %(replica)s and a.pid <> pg_backend_pid()
