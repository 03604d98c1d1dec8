-- get_states: the states of a few jobs, cheap to ask again and again.
select id, state from dispatcher.jobs where id = any(%(ids)s::bigint[])
