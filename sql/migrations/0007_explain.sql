-- Why a job does not run. What is said here about limits, pauses and rates only repeats what the leader goes by; nothing
-- relies on it.

-- The functions below run inside dispatcher.explain, with its rights, search_path and plan settings.

create function dispatcher.reason(kind text, words text, details jsonb) returns jsonb
immutable language sql as $$ select jsonb_build_object('kind', kind, 'text', words, 'details', details) $$;

create function dispatcher.spell_time(moment timestamptz) returns text
stable language sql as $$ select to_char(moment, 'YYYY-MM-DD HH24:MI:SS TZH:TZM') $$;

-- "job 1", "jobs 1, 2", "jobs 1, 2, 3, 4, 5 and 12 more".
create function dispatcher.spell_jobs(ids bigint[], total bigint) returns text
immutable language sql as $$
    select case when total = 1 then 'job ' else 'jobs ' end || array_to_string(ids[1:5], ', ')
           || case when total > 5 then format(' and %s more', total - 5) else '' end $$;

-- "5 a second", "30 a minute", "1 an hour".
create function dispatcher.spell_rate(rate double precision) returns text
immutable language sql as $$
    select trim_scale(round((rate * u.seconds)::numeric, 2)) || u.words
    from (values (1, ' a second'), (60, ' a minute'), (3600, ' an hour'), (86400, ' a day')) u (seconds, words)
    where rate * u.seconds >= 0.999 or u.seconds = 86400 order by u.seconds limit 1 $$;

-- An error of a job in one short line.
create function dispatcher.spell_error(error jsonb) returns text
immutable language sql as $$ select left(regexp_replace(error ->> 'message', '\s+', ' ', 'g'), 200) $$;

-- Who could run jobs of this type: reasons if nobody does, else the lease and the replica that leads it. A replica is
-- there as long as its own session holds its liveness lock, and leads while that session holds the lease's lock.
create function dispatcher.explain_service(type text, out reasons jsonb[], out lease integer, out leader integer)
stable language plpgsql as $$
#variable_conflict use_column
declare
    fleet jsonb;
    gone jsonb;
    free text[];
    seen timestamptz;
    other record;
begin
    reasons := '{}';
    with held as materialized (
        select l.classid, l.objid::integer as number, l.pid from pg_locks l
        where l.locktype = 'advisory' and l.objsubid = 2 and l.granted
          and l.classid in (dispatcher.liveness_lock()::oid, dispatcher.lease_lock()::oid)
          and l.database = (select d.oid from pg_database d where d.datname = current_database())
    )
    select jsonb_agg(jsonb_build_object(
        'id', r.id, 'lease', r.lease, 'host', r.host, 'pid', r.pid,
        'serves', r.types @> array[explain_service.type],
        'alive', exists (select from held h
                         where h.classid = dispatcher.liveness_lock()::oid and h.number = r.id and h.pid = r.backend_pid),
        'leads', exists (select from held h
                         where h.classid = dispatcher.lease_lock()::oid and h.number = r.lease and h.pid = r.backend_pid))
        order by r.id)
    into fleet from dispatcher.replica r;
    fleet := coalesce(fleet, '[]');

    -- A type belongs to one lease; were there two, one that works is enough.
    select r.lease, r.id into lease, leader
    from jsonb_to_recordset(fleet) r (id integer, lease integer, serves boolean, alive boolean, leads boolean)
    where r.serves and r.alive and r.leads limit 1;
    if found then
        return;
    end if;
    select r.lease into lease
    from jsonb_to_recordset(fleet) r (lease integer, serves boolean, alive boolean)
    where r.serves and r.alive limit 1;

    if lease is null then
        select coalesce(jsonb_agg(jsonb_build_object('replica', r.id, 'host', r.host, 'pid', r.pid) order by r.id), '[]')
        into gone
        from jsonb_to_recordset(fleet) r (id integer, host text, pid integer, serves boolean) where r.serves;
        reasons := reasons || dispatcher.reason('no_replica',
            format('no living replica runs jobs of type %L', type)
            || case when gone = '[]' then ': start one that has its executor'
                    else format('; %s did, but %s gone', (
                        select case when count(*) = 1 then 'replica ' else 'replicas ' end
                               || string_agg(format('%s on %s', g ->> 'replica', g ->> 'host'), ', ')
                        from jsonb_array_elements(gone) g),
                        case jsonb_array_length(gone) when 1 then 'is' else 'are' end) end,
            jsonb_build_object('type', type, 'gone', gone));
    else
        select r.id, r.host into other
        from jsonb_to_recordset(fleet) r (id integer, host text, lease integer, leads boolean)
        where r.lease = explain_service.lease and r.leads limit 1;
        if found then
            leader := other.id;
            reasons := reasons || dispatcher.reason('leader_lacks_type',
                format('replica %s on %s leads and has no executor for the type %L, which stand-bys have',
                       other.id, other.host, type),
                jsonb_build_object('leader', other.id, 'host', other.host, 'standbys', (
                    select jsonb_agg(r.id order by r.id)
                    from jsonb_to_recordset(fleet) r (id integer, lease integer, serves boolean, alive boolean)
                    where r.lease = explain_service.lease and r.serves and r.alive)));
            return;
        end if;
    end if;

    -- Nobody leads: of the type's lease, or where it is anybody's guess which that is, of any.
    if not exists (
        select from jsonb_to_recordset(fleet) r (lease integer, leads boolean)
        where r.leads and (explain_service.lease is null or r.lease = explain_service.lease)) then
        select array_agg(l.name order by l.name), max(greatest(l.taken_at, l.seen_at)) into free, seen
        from dispatcher.lease l where explain_service.lease is null or l.number = explain_service.lease;
        reasons := reasons || dispatcher.reason('no_leader',
            format('no replica leads (lease %s)', array_to_string(free, ', '))
            || coalesce('; the last leader was seen at ' || dispatcher.spell_time(seen), '; none ever has'),
            jsonb_build_object('leases', to_jsonb(free), 'since', seen));
    end if;
end $$;

-- None where the type is not paused.
create function dispatcher.explain_pause(type text) returns jsonb[]
stable language sql as $$
    select coalesce(array_agg(dispatcher.reason('paused',
        format('the type %L is paused since %s', t.name, dispatcher.spell_time(t.paused_at)) || coalesce(', by ' || t.paused_by, ''),
        jsonb_build_object('since', t.paused_at, 'by', t.paused_by))), '{}')
    from dispatcher.types t where t.name = explain_pause.type and t.paused_at is not null $$;

-- What holds back a pending job of this type and tenant: pause, limits, rate.
create function dispatcher.explain_limits(type text, tenant text, lease integer, leader integer) returns jsonb[]
stable language plpgsql as $$
#variable_conflict use_column
declare
    reasons jsonb[] := '{}';
    rule record;
    bound record;
    busy record;
begin
    -- Jobs without a tenant have no limit per tenant.
    select t.max_running as most, t.max_running_from as most_by,
           case when explain_limits.tenant <> '' then coalesce(own.max_running, t.tenant_max_running) end as tenant_most,
           case when own.max_running is null then t.tenant_max_running_from else 'database' end as tenant_by,
           t.rate, t.rate_from as rate_by, h.held_until, coalesce(t.pool, 'thread') as pool
    into rule
    from (values (1)) one (row)
    left join dispatcher.types t on t.name = explain_limits.type
    left join dispatcher.control own on own.type = explain_limits.type and own.tenant = explain_limits.tenant and own.tenant <> ''
    left join dispatcher.throttle h on h.type = explain_limits.type;
    select l.name, l.max_running as most, (l.pools->>rule.pool)::integer as places into bound from dispatcher.lease l where l.number = explain_limits.lease;

    -- The lists of what was claimed lead to all that runs: there is no index on it.
    select count(*) as all_types,
           count(*) filter (where j.owner = explain_limits.leader and coalesce(t.pool, 'thread') = rule.pool) as in_pool,
           count(*) filter (where j.type = explain_limits.type) as of_type,
           (array_agg(j.id order by j.id) filter (where j.type = explain_limits.type))[1:20] as type_ids,
           count(*) filter (where j.type = explain_limits.type and j.tenant = explain_limits.tenant) as of_tenant,
           (array_agg(j.id order by j.id)
                filter (where j.type = explain_limits.type and j.tenant = explain_limits.tenant))[1:20] as tenant_ids
    into busy
    from (select distinct named.id from dispatcher.claim c cross join lateral unnest(c.job_ids) as named (id)) named
    join dispatcher.job j on j.id = named.id
    left join dispatcher.type t on t.name = j.type
    where j.state = 'running';

    reasons := dispatcher.explain_pause(type);
    if busy.of_type >= rule.most then
        reasons := reasons || dispatcher.reason('limit',
            format('the limit of the type %L is reached: %s of %s run', type, busy.of_type, rule.most)
            || coalesce(format(' (%s)', dispatcher.spell_jobs(busy.type_ids, busy.of_type)), ''),
            jsonb_build_object('limit', rule.most, 'running', busy.of_type, 'by', coalesce(to_jsonb(busy.type_ids), '[]'),
                               'source', rule.most_by));
    end if;
    if busy.of_tenant >= rule.tenant_most then
        reasons := reasons || dispatcher.reason('tenant_limit',
            format('the limit of the tenant %L within the type %L is reached: %s of %s run', tenant, type, busy.of_tenant,
                   rule.tenant_most)
            || coalesce(format(' (%s)', dispatcher.spell_jobs(busy.tenant_ids, busy.of_tenant)), ''),
            jsonb_build_object('tenant', tenant, 'limit', rule.tenant_most, 'running', busy.of_tenant,
                               'by', coalesce(to_jsonb(busy.tenant_ids), '[]'), 'source', rule.tenant_by));
    end if;
    if rule.rate is not null and rule.held_until > statement_timestamp() then
        reasons := reasons || dispatcher.reason('rate',
            format('the rate of the type %L%s holds it back until %s', type, coalesce(format(' (%s)', dispatcher.spell_rate(rule.rate)), ''),
                   dispatcher.spell_time(rule.held_until)),
            jsonb_build_object('rate', rule.rate, 'until', rule.held_until, 'source', rule.rate_by));
    end if;
    if busy.all_types >= bound.most then
        reasons := reasons || dispatcher.reason('overall',
            format('the limit over all types is reached: %s of %s run', busy.all_types, bound.most),
            jsonb_build_object('limit', bound.most, 'running', busy.all_types, 'lease', bound.name));
    end if;
    if busy.in_pool >= bound.places then
        reasons := reasons || case when rule.pool = 'thread' then dispatcher.reason('threads',
            format('all %s threads of the leader, replica %s, are busy', bound.places, leader),
            jsonb_build_object('threads', bound.places, 'running', busy.in_pool, 'leader', leader))
        else dispatcher.reason('pool',
            case when bound.places = 0
                 then format('the pool %L of the leader, replica %s, has no place: its workers have not been found', rule.pool, leader)
                 else format('all %s places in the pool %L of the leader, replica %s, are taken', bound.places, rule.pool, leader) end,
            jsonb_build_object('pool', rule.pool, 'places', bound.places, 'running', busy.in_pool, 'leader', leader)) end;
    end if;
    return reasons;
end $$;

-- How many pending jobs of its lane go before it, counted up to a bound; null where it is not pending.
create function dispatcher.count_ahead(type text, tenant text, priority smallint, id bigint, bound integer) returns bigint
stable language sql as $$
    select count(*) from (
        select from dispatcher.job j
        where j.listed = 'pending' and j.type = count_ahead.type and j.tenant = count_ahead.tenant
          and (j.priority, j.id) < (count_ahead.priority, count_ahead.id)
        order by j.priority, j.id limit bound) ahead $$;

create function dispatcher.explain_waiting(id bigint) returns jsonb
stable language plpgsql as $$
#variable_conflict use_column
declare
    open_edges bigint;
    first jsonb;
    ids bigint[];
begin
    select count(*) into open_edges from dispatcher.dependency d where d.job_id = explain_waiting.id and d.outcome is null;
    select jsonb_agg(jsonb_build_object('id', d.after_id, 'state', j.state) order by d.after_id),
           array_agg(d.after_id order by d.after_id)
    into first, ids
    from (select d.after_id from dispatcher.dependency d
          where d.job_id = explain_waiting.id and d.outcome is null order by d.after_id limit 20) d
    left join dispatcher.job j on j.id = d.after_id;
    return dispatcher.reason('waits_for',
        case when open_edges = 0 then 'all jobs that it waited for have ended: the leader is about to release it'
             else 'it runs after ' || dispatcher.spell_jobs(ids, open_edges) end,
        jsonb_build_object('count', open_edges, 'jobs', coalesce(first, '[]')));
end $$;

create function dispatcher.explain_running(
    since timestamptz, owner integer, attempt integer, timeout_s double precision, asked boolean, timed_out boolean) returns jsonb
stable language plpgsql as $$
#variable_conflict use_column
declare
    place text;
    there boolean;
    past boolean := statement_timestamp() > since + make_interval(secs => timeout_s);
begin
    select r.host, dispatcher.holds_lock(dispatcher.liveness_lock(), r.id, r.backend_pid) into place, there
    from dispatcher.replica r where r.id = owner;
    return dispatcher.reason('running',
        format('it runs since %s on replica %s%s, attempt %s', dispatcher.spell_time(since), owner, ' on ' || place, attempt)
        || case when timed_out then '; it is past its timeout, and its thread has yet to come back'
                when past then '; it is past its timeout' else '' end
        || case when asked then '; it was asked to stop' else '' end
        || case when there then '' else '; that replica is gone, and the job will be taken from it' end,
        jsonb_build_object('since', since, 'replica', owner, 'host', place, 'alive', coalesce(there, false),
                           'attempt', attempt, 'cancel_requested', asked, 'timed_out', timed_out,
                           'timeout_s', timeout_s, 'past_timeout', coalesce(past, false)));
end $$;

-- Null: it is no batch.
create function dispatcher.explain_batch(id bigint) returns jsonb
stable language sql as $$
    select dispatcher.reason('batch',
        format('%s of its %s jobs are open', b.total - b.succeeded - b.partial - b.failed - b.canceled, b.total)
        || case when b.cancel_requested then '; it was asked to stop' else '' end,
        jsonb_build_object('total', b.total, 'open', b.total - b.succeeded - b.partial - b.failed - b.canceled,
                           'scheduled', b.scheduled, 'blocked', b.blocked, 'pending', b.pending, 'running', b.running,
                           'succeeded', b.succeeded, 'partial', b.partial, 'failed', b.failed, 'canceled', b.canceled,
                           'cancel_requested', b.cancel_requested))
    from dispatcher.batches b where b.id = explain_batch.id $$;

-- Answers {id, type, tenant, state, summary, ahead, reasons: [{kind, text, details}]}, the most decisive reason first. It reads
-- by index whatever the size of the table, with plans that do not depend on the caller's settings or on statistics.
create function dispatcher.explain(id bigint) returns jsonb
stable language plpgsql security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
set max_parallel_workers_per_gather = 0 set jit = off set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
    bound constant integer := 10000;                   -- what is counted at most of the jobs ahead
    j record;
    unserved jsonb[] := '{}';                          -- why nobody could run it
    lease integer;
    leader integer;
    reasons jsonb[];
    ahead bigint;
    due boolean;
begin
    select j.id, j.type, j.tenant, j.state, j.priority, j.run_at, j.started_at, j.finished_at, j.owner, j.attempt, j.failures,
           coalesce(j.max_attempts, t.max_attempts) as max_attempts, coalesce(j.timeout_s, t.timeout_s) as timeout_s,
           j.cancel_requested, j.timed_out, j.errors -> -1 as error
    into j
    from dispatcher.job j left join dispatcher.type t on t.name = j.type where j.id = explain.id;
    if not found then
        perform dispatcher.raise_not_found(explain.id);
    end if;
    due := j.state = 'pending' or (j.state = 'scheduled' and j.run_at <= statement_timestamp());
    if due or j.state = 'blocked' then   -- the leader releases, promotes and claims
        select s.reasons, s.lease, s.leader into unserved, lease, leader from dispatcher.explain_service(j.type) s;
    end if;

    case j.state
    when 'pending' then
        reasons := unserved || dispatcher.explain_limits(j.type, j.tenant, lease, leader);
        ahead := dispatcher.count_ahead(j.type, j.tenant, j.priority, j.id, bound + 1);
        if ahead > 0 then
            reasons := reasons || dispatcher.reason('ahead',
                format('%s pending %s of its type%s %s before it', case when ahead > bound then bound || '+' else ahead::text end,
                       case ahead when 1 then 'job' else 'jobs' end, case when j.tenant <> '' then ' and tenant' else '' end,
                       case ahead when 1 then 'comes' else 'come' end),
                jsonb_build_object('ahead', least(ahead, bound), 'more', ahead > bound));
        end if;
        if reasons = '{}' then
            reasons := reasons || dispatcher.reason('next', 'nothing holds it back: it comes with one of the next claims', '{}');
        end if;
    when 'scheduled' then
        reasons := unserved || dispatcher.reason('scheduled',
            case when due then format('it is due since %s: the leader makes it pending soon', dispatcher.spell_time(j.run_at))
                 else format('it is due at %s', dispatcher.spell_time(j.run_at)) end
            || case when j.failures > 0 then format(', after %s of %s failures', j.failures, coalesce(j.max_attempts::text, 'so many'))
                    || coalesce('; the last one: ' || dispatcher.spell_error(j.error), '') else '' end
            || case when j.cancel_requested then '; it was asked to stop, and is canceled then' else '' end,
            jsonb_build_object('until', j.run_at, 'between_tries', j.failures > 0, 'failures', j.failures,
                               'max_attempts', j.max_attempts, 'error', j.error ->> 'message'))
            || dispatcher.explain_pause(j.type);
    when 'blocked' then
        reasons := dispatcher.explain_waiting(j.id) || unserved || dispatcher.explain_pause(j.type);
    when 'running' then
        reasons := array[coalesce(
            dispatcher.explain_batch(j.id),
            dispatcher.explain_running(j.started_at, j.owner, j.attempt, j.timeout_s, j.cancel_requested, j.timed_out))];
    else
        reasons := array[dispatcher.reason('ended',
            format('it ended at %s', dispatcher.spell_time(j.finished_at))
            || case when j.state = 'succeeded' then '' else coalesce('; the last error: ' || dispatcher.spell_error(j.error), '') end,
            jsonb_build_object('state', j.state, 'at', j.finished_at, 'attempt', j.attempt, 'failures', j.failures,
                               'error', j.error ->> 'message'))];
    end case;

    return jsonb_build_object(
        'id', j.id, 'type', j.type, 'tenant', nullif(j.tenant, ''), 'state', j.state,
        'ahead', case when ahead is not null then least(ahead, bound) end,
        'summary', format('job %s (%s) is %s: %s', j.id, j.type, j.state, reasons[1] ->> 'text'),
        'reasons', to_jsonb(reasons));
end $$;

revoke all on function dispatcher.reason(text, text, jsonb), dispatcher.spell_time(timestamptz),
    dispatcher.spell_jobs(bigint[], bigint), dispatcher.spell_error(jsonb), dispatcher.explain_service(text),
    dispatcher.explain_pause(text),
    dispatcher.explain_limits(text, text, integer, integer),
    dispatcher.count_ahead(text, text, smallint, bigint, integer), dispatcher.explain_waiting(bigint),
    dispatcher.explain_running(timestamptz, integer, integer, double precision, boolean, boolean),
    dispatcher.explain_batch(bigint), dispatcher.explain(bigint) from public;
