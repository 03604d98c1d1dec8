-- lock_tables: all that a migration may change, before it changes anything. Views first, as those who read them; then `type` before `job`,
-- as those who enqueue. Who has used some of it in a transaction and now wants more can still be in the way, and this in theirs: so it
-- gives up before their deadlock_timeout, and it is never they who are ended.
do $$
declare
    until_at constant timestamptz := clock_timestamp() + make_interval(secs => least(
        current_setting('dispatcher.lock_wait_s')::double precision,
        0.9 * extract(epoch from current_setting('deadlock_timeout')::interval)));
    item record;
begin
    for item in
        select c.oid::regclass::text as name, c.relkind = 'v' as is_view from pg_class c
        where c.relnamespace = 'dispatcher'::regnamespace and c.relkind in ('r', 'v')
        order by c.relkind <> 'v', c.relname <> 'type', c.relname <> 'job', c.relname
    loop
        perform set_config('lock_timeout', greatest(1,
            (1000 * extract(epoch from until_at - clock_timestamp()))::integer) || 'ms', true);
        -- LOCK would lock the tables below the view as well, in another order.
        execute format(case when item.is_view then 'alter view %s reset (security_barrier)'
                       else 'lock table %s in access exclusive mode' end, item.name);
    end loop;
end $$
