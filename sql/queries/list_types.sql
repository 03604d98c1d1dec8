-- list_types: all known types, with what holds for them.
select t.name, t.max_running, t.timeout_s, t.max_attempts, t.max_payload_bytes, t.payload_schema, t.description, t.published_at,
       t.max_running_from, t.tenant_max_running, t.tenant_max_running_from, t.rate, t.rate_from, t.burst, t.burst_from, t.paused_at, t.paused_by,
       (select jsonb_object_agg(c.tenant, c.max_running) from dispatcher.control c where c.type = t.name and c.tenant <> '') as tenants,
       t.pool
from dispatcher.types t order by t.name
