-- get_timeline: of a server that takes writes; each promotion begins a higher one. An error on a standby.
select ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint
