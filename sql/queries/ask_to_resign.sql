-- ask_to_resign: tells the holder of the lease to give it away, in this term only: it may be heard late.
select pg_notify('dispatcher_replica_' || l.holder, 'resign ' || l.term), l.holder, l.term
from dispatcher.lease l where l.name = %(name)s and l.holder is not null
