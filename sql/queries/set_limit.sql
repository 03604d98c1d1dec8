-- set_limit: changes what is given.
select dispatcher.set_limit(%(type)s::text, %(options)s::jsonb)
