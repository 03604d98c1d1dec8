-- enqueue_many_jobs: all or none; ids in the payloads' order. One text with a payload a line, as JSON has no raw newline inside
-- a string: half the time of a text array, whose elements psycopg has to quote one by one.
select * from dispatcher.enqueue_many(%(type)s, string_to_array(%(payloads)s, E'\n')::jsonb[], %(options)s::jsonb)
