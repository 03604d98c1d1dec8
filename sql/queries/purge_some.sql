-- purge_some: one step of dispatcher.purge; jobs that others still need are passed by.
select s.purged, s.skipped, s.next from dispatcher.purge_step(%(filter)s::jsonb, %(before)s::bigint, %(most)s::bigint) s
