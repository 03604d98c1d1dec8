-- enqueue_job: id, and whether it is new.
select id, created from dispatcher.enqueue_unique(%(type)s, %(payload)s::jsonb, %(options)s::jsonb)
