-- retry_some: one step of dispatcher.retry_where; jobs that cannot run again are passed by.
select s.retried, s.skipped, s.next from dispatcher.retry_step(%(filter)s::jsonb, %(before)s::bigint, %(most)s::bigint) s
