-- plan_schedule: the first due time, unless the schedule was changed meanwhile; a locked row waits for the next look.
update dispatcher.schedule s set next_at = %(next_at)s
from (select f.name from dispatcher.schedule f where f.name = %(name)s for no key update skip locked) free
where s.name = free.name and s.next_at is null and s.cron = %(cron)s and s.zone = %(zone)s
