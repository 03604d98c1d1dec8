-- list_controls: what operators said about types.
select type, tenant, max_running, tenant_max_running, rate, burst, paused_at is not null as paused from dispatcher.control
