-- stop_schedule: says why it cannot go on; a change, or resume, starts it again. Not if it was changed meanwhile.
update dispatcher.schedule s set error = %(error)s
from (select f.name from dispatcher.schedule f where f.name = %(name)s for no key update skip locked) free
where s.name = free.name and s.changed_at = %(changed_at)s and s.next_at is not distinct from %(due)s
