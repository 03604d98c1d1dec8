-- wake_leader: a replica that does not lead has freed a slot.
select pg_notify('dispatcher_' || %(lease)s, '')
