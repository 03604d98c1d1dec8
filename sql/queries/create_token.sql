-- create_token: its id.
select dispatcher.create_token(%(name)s, %(tenant)s, %(role)s, %(hash)s, %(lifetime_s)s)
