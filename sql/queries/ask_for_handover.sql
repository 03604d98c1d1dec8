-- ask_for_handover: a leader that can run nothing that this replica cannot is asked to give the lease away where this one is newer,
-- and keeps rules that the leader does not know, or can run more: jobs of a type that only a standby knows would never run.
select pg_notify('dispatcher_replica_' || h.id, 'resign ' || l.term)
from dispatcher.lease l
join dispatcher.replica h on h.id = l.holder
join dispatcher.replica m on m.id = %(replica)s
where l.number = %(lease)s and h.types <@ m.types and (m.schema_version > h.schema_version or not m.types <@ h.types)
