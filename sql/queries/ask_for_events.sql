-- ask_for_events: the replicas of all leases tell of their jobs for a while.
select pg_notify('dispatcher_fleet', 'watch')
