-- check_server: what decides whether this server can be led on.
select
    current_setting('server_version_num')::integer as version_num,
    current_setting('server_version') as version,
    current_setting('server_encoding') as encoding,
    pg_is_in_recovery() as in_recovery,
    pg_backend_pid() as backend_pid,
    to_regclass('dispatcher.migration') is not null as has_schema
