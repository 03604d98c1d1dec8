-- get_payload_schema: what payloads of a type must look like; no row for an unknown type.
select payload_schema from dispatcher.type where name = %(type)s
