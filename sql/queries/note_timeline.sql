-- note_timeline: what a promoted server may have lost has been waited for; only the session that holds the lease says so.
update dispatcher.lease l set timeline = left(pg_walfile_name(pg_current_wal_lsn()), 8)
where l.number = %(lease)s and dispatcher.holds_lock(dispatcher.lease_lock(), l.number, pg_backend_pid())
