-- begin_term: only the session that holds the lease raises the term; anyone else matches no row.
update dispatcher.lease l
set term = l.term + 1, holder = %(replica)s, taken_at = now(), timeline = left(pg_walfile_name(pg_current_wal_lsn()), 8)
from (select o.number, o.timeline from dispatcher.lease o where o.number = %(lease)s) old
where l.number = old.number and dispatcher.holds_lock(dispatcher.lease_lock(), l.number, pg_backend_pid())
returning l.term, old.timeline is not null and old.timeline <> l.timeline as timeline_changed
