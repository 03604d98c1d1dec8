-- next_due: seconds until the earliest scheduled job is due.
select extract(epoch from j.run_at - clock_timestamp())::double precision as seconds
from dispatcher.job j where j.listed = 'scheduled' order by j.run_at limit 1
