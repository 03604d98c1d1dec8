-- publish_types: what this replica can run becomes known to every front door. What is known already is left out: even an
-- update that changes nothing would lock its row, and replicas start together.
insert into dispatcher.type as t (
    name, max_running, tenant_max_running, rate, burst, timeout_s, max_attempts, max_payload_bytes, payload_schema, description,
    pool)
select n.name, n.max_running, n.tenant_max_running, n.rate, n.burst, n.timeout_s, n.max_attempts, %(max_payload_bytes)s,
       n.payload_schema::jsonb, n.description, n.pool
from unnest(%(names)s::text[], %(limits)s::integer[], %(tenant_limits)s::integer[], %(rates)s::double precision[], %(bursts)s::integer[],
            %(timeouts_s)s::double precision[], %(max_attempts)s::integer[], %(schemas)s::text[], %(descriptions)s::text[],
            %(pools)s::text[])
    as n (name, max_running, tenant_max_running, rate, burst, timeout_s, max_attempts, payload_schema, description, pool)
where not exists (
    select from dispatcher.type k
    where k.name = n.name
      and (k.max_running, k.tenant_max_running, k.rate, k.burst, k.timeout_s, k.max_attempts, k.max_payload_bytes, k.payload_schema,
           k.description, k.pool)
          is not distinct from (n.max_running, n.tenant_max_running, n.rate, n.burst, n.timeout_s, n.max_attempts,
                                %(max_payload_bytes)s::integer, n.payload_schema::jsonb, n.description, n.pool))
order by n.name
on conflict (name) do update
set max_running = excluded.max_running, tenant_max_running = excluded.tenant_max_running, rate = excluded.rate, burst = excluded.burst,
    timeout_s = excluded.timeout_s, max_attempts = excluded.max_attempts, max_payload_bytes = excluded.max_payload_bytes,
    payload_schema = excluded.payload_schema, description = excluded.description, pool = excluded.pool,
    published_at = now()
where (t.max_running, t.tenant_max_running, t.rate, t.burst, t.timeout_s, t.max_attempts, t.max_payload_bytes, t.payload_schema,
       t.description, t.pool)
   is distinct from (excluded.max_running, excluded.tenant_max_running, excluded.rate, excluded.burst, excluded.timeout_s,
                     excluded.max_attempts, excluded.max_payload_bytes, excluded.payload_schema, excluded.description, excluded.pool)
