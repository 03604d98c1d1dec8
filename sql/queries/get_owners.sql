-- get_owners: the tenants of those of these jobs that exist.
select j.id, j.tenant from dispatcher.job j where j.id = any(%(ids)s::bigint[])
