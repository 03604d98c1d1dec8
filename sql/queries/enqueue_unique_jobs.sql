-- enqueue_unique_jobs: (id, created) in the payloads' order; one text with a payload a line, as in enqueue_many_jobs.
select id, created from dispatcher.enqueue_many_unique(%(type)s, string_to_array(%(payloads)s, E'\n')::jsonb[], %(options)s::jsonb)
