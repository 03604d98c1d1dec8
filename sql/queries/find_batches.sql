-- find_batches: those that exist.
select job_id from dispatcher.batch where job_id = any(%(ids)s::bigint[])
