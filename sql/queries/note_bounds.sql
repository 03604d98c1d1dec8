-- note_bounds: what the leader goes by, for people; only the leader's own row, and not while somebody holds it locked.
update dispatcher.lease l set max_running = %(max_running)s, pools = %(sizes)s
from (
    select f.number from dispatcher.lease f
    where f.number = %(lease)s and f.holder = %(replica)s
      and (f.max_running, f.pools) is distinct from (%(max_running)s::integer, %(sizes)s::jsonb)
    for no key update skip locked) free
where l.number = free.number
