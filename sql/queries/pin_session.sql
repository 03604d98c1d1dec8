-- pin_session: a role's or a database's defaults may say otherwise; the daemon's promises must not depend on them. The plan
-- settings keep hot statements on nested loops over the primary key: statistics of a queue are always out of date.
select
    set_config('default_transaction_isolation', 'read committed', false),
    set_config('default_transaction_read_only', 'off', false),
    set_config('default_transaction_deferrable', 'off', false),
    set_config('synchronous_commit', 'on', false),
    set_config('search_path', 'pg_catalog, pg_temp', false),
    set_config('timezone', 'UTC', false),
    set_config('datestyle', 'ISO', false),
    set_config('intervalstyle', 'postgres', false),
    set_config('statement_timeout', %(statement_timeout_ms)s::text, false),
    set_config('lock_timeout', %(lock_timeout_ms)s::text, false),
    set_config('idle_session_timeout', %(idle_timeout_ms)s::text, false),
    set_config('idle_in_transaction_session_timeout', %(idle_in_transaction_ms)s::text, false),
    set_config('client_connection_check_interval', %(connection_check_ms)s::text, false),
    set_config('jit', 'off', false),
    set_config('plan_cache_mode', 'force_generic_plan', false),
    set_config('enable_hashjoin', 'off', false),
    set_config('enable_mergejoin', 'off', false),
    set_config('enable_seqscan', 'off', false),
    set_config('enable_bitmapscan', 'off', false),
    set_config('max_parallel_workers_per_gather', '0', false),
    set_config('dispatcher.signaled', '1', false)  -- its own writes wake nobody: it looks by itself
