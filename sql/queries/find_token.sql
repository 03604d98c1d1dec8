-- find_token: by its hash; none, or one that may be of no use any more.
select id, name, tenant, role, state, expires_in_s from dispatcher.find_token(%(hash)s)
