-- promote_jobs: scheduled becomes pending once it is due, or canceled where it was to be once its former replica was gone; a locked row
-- waits for the next look.
with due as materialized (
    select j.id from dispatcher.job j where j.listed = 'scheduled' and j.run_at <= now() order by j.run_at limit %(batch)s for no key update skip locked
)
update dispatcher.job j
set state = case when j.cancel_requested then 'canceled' else 'pending' end, finished_at = case when j.cancel_requested then now() end
from due d where j.id = any(array[d.id]) and j.state = 'scheduled' returning j.id
