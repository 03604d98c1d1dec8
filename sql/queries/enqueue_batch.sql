-- enqueue_batch: a new batch with its first jobs; one text with a payload a line, as in enqueue_many_jobs.
select dispatcher.enqueue_batch(%(type)s, string_to_array(%(payloads)s, E'\n')::jsonb[], %(options)s::jsonb)
