-- list_tokens: all, by id.
select id, name, tenant, role, created_at, created_by, expires_at, revoked_at, used_at, coalesce(expires_at <= now(), false) as expired
from dispatcher.tokens order by id
