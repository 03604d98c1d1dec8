-- keep_answer: in the transaction that did what it tells of.
select dispatcher.keep_answer(%(tenant)s, %(key)s, %(status)s::smallint, %(headers)s::jsonb, %(body)s)
