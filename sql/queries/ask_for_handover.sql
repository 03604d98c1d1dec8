-- ask_for_handover: a leader that cannot run all types that this replica can, and none that this one cannot, is asked to
-- give the lease away: jobs of a type that only a standby knows would never run.
select pg_notify('dispatcher_replica_' || h.id, 'resign ' || l.term)
from dispatcher.lease l
join dispatcher.replica h on h.id = l.holder
join dispatcher.replica m on m.id = %(replica)s
where l.number = %(lease)s and h.types <@ m.types and not m.types <@ h.types
