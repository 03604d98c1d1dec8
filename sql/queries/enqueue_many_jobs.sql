-- enqueue_many_jobs: all or none; ids in the payloads' order.
select * from dispatcher.enqueue_many(%(type)s, %(payloads)s::jsonb[], %(options)s::jsonb)
