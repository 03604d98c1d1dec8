-- list_canceled: of the jobs this replica runs, those that somebody asked to stop (a notification may have been lost).
select j.id from unnest(%(ids)s::bigint[]) as r (id) join dispatcher.job j on j.id = any(array[r.id])
where j.state = 'running' and j.owner = %(owner)s and j.cancel_requested
