-- begin_term: only the session that holds the lease raises the term; anyone else matches no row. Another timeline is recorded
-- by note_timeline only once it has been waited for: whoever leads until then has to wait as well.
update dispatcher.lease l
set term = l.term + 1, holder = %(replica)s, taken_at = now(), timeline = coalesce(l.timeline, server.timeline)
from (select left(pg_walfile_name(pg_current_wal_lsn()), 8) as timeline) server
where l.number = %(lease)s and dispatcher.holds_lock(dispatcher.lease_lock(), l.number, pg_backend_pid())
returning l.term, l.timeline <> server.timeline as timeline_changed
