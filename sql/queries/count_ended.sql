-- count_ended: how many ended jobs match a filter.
select dispatcher.count_ended(%(filter)s::jsonb)
