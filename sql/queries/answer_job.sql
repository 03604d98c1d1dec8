-- answer_job: the first answer with a token that the job gave out; the state that it leaves the job in, or an error that says why not.
select dispatcher.answer(%(id)s, %(token)s, %(answer)s::jsonb)
