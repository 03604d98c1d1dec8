-- promote_jobs: scheduled becomes pending once it is due; a locked row waits for the next look.
with due as materialized (
    select j.id from dispatcher.job j where j.listed = 'scheduled' and j.run_at <= now() order by j.run_at limit %(batch)s for no key update skip locked
)
update dispatcher.job j set state = 'pending' from due d where j.id = any(array[d.id]) and j.state = 'scheduled' returning j.id
