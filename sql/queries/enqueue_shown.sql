-- enqueue_shown: id, whether it is new, state, and when it was created.
select id, created, state, created_at from dispatcher.enqueue_shown(%(type)s, %(payload)s::jsonb, %(options)s::jsonb)
