-- enqueue_group: id, whether it is new, state, and when it was created, in their order; payloads and options a line each.
select id, created, state, created_at
from dispatcher.enqueue_group(
    %(types)s::text[], string_to_array(%(payloads)s, E'\n')::jsonb[], string_to_array(%(options)s, E'\n')::jsonb[])
