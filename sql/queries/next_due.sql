-- next_due: seconds until the earliest scheduled job is due.
select extract(epoch from j.due_at - clock_timestamp())::double precision as seconds
from dispatcher.job j where j.due_at is not null order by j.due_at limit 1
