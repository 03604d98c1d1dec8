-- answer_enqueues: jobs in their order, and the answer to each; payloads and options a line each.
select status, replayed, headers, body
from dispatcher.answer_enqueues(
    %(types)s::text[], string_to_array(%(payloads)s, E'\n')::jsonb[], string_to_array(%(options)s, E'\n')::jsonb[],
    %(tenants)s::text[], %(keys)s::text[], %(digests)s::bytea[])
