-- list_types: all known types.
select name, max_running, timeout_s, max_attempts, max_payload_bytes, payload_schema, description, published_at
from dispatcher.type order by name
