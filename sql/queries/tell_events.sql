-- tell_events: which jobs have changed, for whoever watches; all notifications in one transaction, since each takes a lock over
-- the whole cluster at its commit.
select pg_notify('dispatcher_events', p.payload) from unnest(%(payloads)s::text[]) as p (payload)
