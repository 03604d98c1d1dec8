-- note_token_use: once a minute at most for each.
select dispatcher.note_token_use(%(ids)s::integer[])
