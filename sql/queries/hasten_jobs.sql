-- hasten_jobs: makes scheduled jobs due, as time would; how many. For tests of executors: the daemon never asks for it.
with hastened as (
    update dispatcher.job j set run_at = now() where j.listed = 'scheduled' and j.state = 'scheduled' returning j.id
)
select count(*)::integer as hastened from hastened h
