-- Jobs, their types, the lease, the replicas, and the functions that any client may call.

-- What the replicas' executors can run, published by each replica as it starts.
create table dispatcher.type (
    name text collate "C" primary key check (name ~ '^[A-Za-z0-9_.:/-]{1,200}$'),
    max_running integer check (max_running >= 0),      -- null: as many as there are threads
    timeout_s double precision not null check (timeout_s > 0),
    max_attempts integer not null check (max_attempts >= 1),
    max_payload_bytes integer not null,
    payload_schema jsonb,
    description text not null default '',
    published_at timestamptz not null default now()
);

-- The row is the truth about a job. Each update writes it anew, so it is narrow, and pages start half empty so
-- that an outcome's version finds room beside the old one. `state` stands in no index and in no index predicate:
-- only so can the outcome's update leave every index alone (HOT). The indexes stand on generated columns instead, which
-- are null where they are of no concern. There is no index on running or finished jobs: running ones are found by
-- dispatcher.claim, finished ones are pruned by a walk over the primary key. Each generated column and each constraint
-- is parsed anew by every INSERT and UPDATE, which a single enqueue feels: hence few, and checks in the functions below.
create table dispatcher.job (
    id bigint generated always as identity primary key,
    created_at timestamptz not null default now(),
    run_at timestamptz,                                -- null: at once
    started_at timestamptz,
    finished_at timestamptz,
    owner integer,                                     -- the replica that runs it or ran it last
    attempt integer not null default 0,                -- never goes down; (id, attempt) names one execution
    timeout_s real,                                    -- null: the type's
    progress real,
    failures smallint not null default 0,
    max_attempts smallint,                             -- null: the type's
    priority smallint not null default 0,              -- lower runs first
    cancel_requested boolean not null default false,
    timed_out boolean not null default false,          -- past its timeout, its thread not back yet
    type text collate "C" not null,
    tenant text collate "C" not null default '',
    state text collate "C" not null,
    unique_key text,
    live_key text generated always as (
        case when state in ('scheduled', 'blocked', 'pending', 'running') then unique_key end) stored,
    listed text collate "C" generated always as (      -- in which of the indexes below
        case when state in ('pending', 'scheduled') then state
             when state in ('partial', 'failed', 'canceled') then 'troubled' end) stored,
    progress_message text,
    result_url text,
    payload jsonb not null,
    checkpoint jsonb,                                  -- what an attempt leaves for the next one
    result jsonb,
    errors jsonb,                                      -- array of {at, attempt, kind, message, trace, item?}
    constraint job_state check (
        state in ('blocked', 'pending', 'running', 'succeeded', 'partial', 'failed', 'canceled')
        or (state = 'scheduled' and run_at is not null))
) with (
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.02,             -- a queue turns its rows over all day: vacuum early and often,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 1,                  -- and get it done
    autovacuum_vacuum_insert_scale_factor = 0.1,
    autovacuum_analyze_scale_factor = 0.05,
    vacuum_truncate = false,                           -- truncation locks the whole table for a moment, again and again
    toast.autovacuum_vacuum_scale_factor = 0.02
);

-- A lane is (type, tenant); a claim reads the front of each lane.
create index job_lane on dispatcher.job (type, tenant, priority, id) where listed = 'pending';
create index job_due on dispatcher.job (run_at) where listed = 'scheduled';
create unique index job_unique on dispatcher.job (type, live_key) where live_key is not null;
create index job_troubled on dispatcher.job (id) where listed = 'troubled';

-- What each replica claimed, a row a batch: a list of where running rows are, instead of an index on them.
-- Every running job is named here; not every job named here still runs.
create table dispatcher.claim (
    id bigint generated always as identity primary key,
    owner integer not null,
    term bigint not null,
    claimed_at timestamptz not null default now(),
    job_ids bigint[] not null
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_cost_delay = 0,
        vacuum_truncate = false);
alter table dispatcher.claim alter column job_ids set storage external;  -- ids do not compress

-- Tells this installation from another one, so that a job cannot complete itself in the wrong database.
create table dispatcher.installation (id uuid not null default gen_random_uuid());
insert into dispatcher.installation default values;

create table dispatcher.lease (
    number integer generated always as identity primary key,
    name text not null unique,
    term bigint not null default 0,                    -- grows with each take-over
    holder integer,                                    -- replica
    taken_at timestamptz,
    timeline text                                      -- of the server that granted it
);
insert into dispatcher.lease (name) values ('default');

create table dispatcher.replica (
    id integer generated always as identity primary key,
    lease integer not null references dispatcher.lease (number),
    incarnation integer not null default 0,            -- raised each time its liveness lock is taken
    host text not null,
    pid integer not null,
    boot_id text,                                      -- these four prove a death on the same host
    pid_namespace text,
    process_start text,
    lock_file text,
    version text not null,
    types text[] not null,
    started_at timestamptz not null default now(),
    backend_pid integer,                               -- the session that holds its liveness lock
    backend_start timestamptz
);

-- Advisory locks: (class, lease number) or (class, replica id).
create function dispatcher.lease_lock() returns integer immutable language sql return 1146310657;
create function dispatcher.awake_lock() returns integer immutable language sql return 1146310658;
create function dispatcher.doze_lock() returns integer immutable language sql return 1146310659;
create function dispatcher.liveness_lock() returns integer immutable language sql return 1146310660;

create function dispatcher.holds_lock(class integer, number integer, pid integer) returns boolean
stable language sql return exists (
    select from pg_catalog.pg_locks l
    where l.locktype = 'advisory' and l.classid = class::oid and l.objid = number::oid and l.objsubid = 2
      and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = current_database())
      and l.granted and l.pid = holds_lock.pid);

-- Waits for the lease, at most wait_ms and well inside deadlock_timeout (past that log_lock_waits would log each wait,
-- and a waiter pins the vacuum horizon). The time-out is caught here so that the server's log stays quiet. It can strike
-- in the instant in which the lock is granted; PostgreSQL keeps the grant: hence the look at who holds it.
create function dispatcher.wait_lease(
    lease integer, wait_ms integer,
    out held boolean, out holder_pid integer, out holder_backend_start timestamptz,
    out holder_state text, out holder_state_change timestamptz)
language plpgsql as $$
begin
    perform set_config('lock_timeout', least(wait_ms,
        (extract(epoch from current_setting('deadlock_timeout')::interval) * 900)::integer) || 'ms', true);
    begin
        perform pg_advisory_lock(dispatcher.lease_lock(), lease);
        held := true;
        return;
    exception when lock_not_available then
        held := dispatcher.holds_lock(dispatcher.lease_lock(), lease, pg_backend_pid());
    end;
    if not held then
        select a.pid, a.backend_start, a.state, a.state_change
        into holder_pid, holder_backend_start, holder_state, holder_state_change
        from pg_locks l join pg_stat_activity a on a.pid = l.pid
        where l.locktype = 'advisory' and l.classid = dispatcher.lease_lock()::oid and l.objid = lease::oid
          and l.objsubid = 2 and l.granted
          and l.database = (select d.oid from pg_database d where d.datname = current_database());
    end if;
end $$;

-- The leader falls asleep: it gives the awake lock back and, in this transaction only, tries the doze lock. True: no
-- enqueuer stands between its own look at the awake lock and its commit, so later ones will notify.
create function dispatcher.doze(lease integer, give_back boolean) returns boolean
language plpgsql as $$
begin
    if give_back then
        perform pg_advisory_unlock(dispatcher.awake_lock(), lease);
    end if;
    return pg_try_advisory_xact_lock(dispatcher.doze_lock(), lease);
end $$;

-- At commit, once a transaction: notify the leader unless it is awake and will look by itself. NOTIFY takes a lock
-- over the whole cluster, so a busy leader's enqueuers must not need it.
create function dispatcher.signal() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    lease integer;
begin
    for lease in select l.number from dispatcher.lease l loop
        if not pg_try_advisory_xact_lock_shared(dispatcher.doze_lock(), lease)
           or pg_try_advisory_xact_lock_shared(dispatcher.awake_lock(), lease) then
            perform pg_notify('dispatcher_' || lease, '');
        end if;
    end loop;
    return null;
end $$;

-- The setting marks the transaction (and is undone with its savepoint), so one event at most is queued for it. The
-- daemon's own sessions carry the mark from the start. run_at is written wherever somebody makes a job due.
create constraint trigger signal after insert or update of run_at on dispatcher.job
deferrable initially deferred for each row
when (current_setting('dispatcher.signaled', true) is distinct from '1'
      and set_config('dispatcher.signaled', '1', true) = '1')
execute function dispatcher.signal();

create function dispatcher.raise_unknown_type(name text) returns void
language plpgsql as $$
begin
    raise exception using errcode = 'DJ001', message = format('unknown job type %L; known types: %s',
        name, coalesce((select string_agg(t.name, ', ' order by t.name) from dispatcher.type t),
                       'none, no replica has registered any yet'));
end $$;

-- Raises where the payload is no object or too large. The limit is of the text, for that is what a claim reads: as stored a
-- payload may be compressed, and 1e131071 has a dozen bytes.
create function dispatcher.check_payload(payload jsonb, max_bytes integer) returns void
immutable language plpgsql as $$
declare
    bytes integer;
begin
    if payload is null or jsonb_typeof(payload) <> 'object' then
        raise exception using errcode = 'DJ002', message = format(
            'the payload must be a JSON object, not %s', coalesce(jsonb_typeof(payload), 'SQL NULL'));
    end if;
    bytes := octet_length(payload::text);
    if bytes > max_bytes then
        raise exception using errcode = 'DJ003', message = format(
            'the payload has %s bytes; the limit is %s', bytes, max_bytes);
    end if;
end $$;

create function dispatcher.parse_duration(name text, value jsonb, out result interval)
immutable language plpgsql as $$
begin
    if jsonb_typeof(value) = 'number' then
        result := make_interval(secs => (value #>> '{}')::double precision);
    elsif jsonb_typeof(value) = 'string' then
        result := (value #>> '{}')::interval;
    end if;
    -- A hundred years: beyond the year 9999 many clients cannot even read a time.
    if result is null or result < interval '0' or result > interval '100 years' then
        raise exception using errcode = 'DJ004', message = format(
            'option %L must be a duration that is not negative, such as 30, "5s" or "15min", and at most 100 years; it is %s',
            name, value);
    end if;
exception when invalid_datetime_format or datetime_field_overflow or interval_field_overflow
               or numeric_value_out_of_range then
    raise exception using errcode = 'DJ004', message = format(
        'option %L must be a duration such as 30, "5s" or "15min"; it is %s', name, value);
end $$;

create type dispatcher.job_options as (
    priority smallint, run_at timestamptz, tenant text, unique_key text, max_attempts smallint, timeout_s real);

create function dispatcher.parse_options(options jsonb, out parsed dispatcher.job_options)
stable language plpgsql as $$
declare
    name text;
    value jsonb;
    number numeric;
begin
    parsed.priority := 0;
    parsed.tenant := '';
    if options is null or options = '{}' then
        return;
    end if;
    if jsonb_typeof(options) <> 'object' then
        raise exception using errcode = 'DJ004', message = 'the options must be a JSON object';
    end if;
    if options ? 'run_at' and options ? 'delay' then
        raise exception using errcode = 'DJ004', message = 'give run_at or delay, not both';
    end if;
    for name, value in select * from jsonb_each(options) loop
        continue when value = 'null';
        case name
        when 'priority', 'max_attempts' then
            number := case when jsonb_typeof(value) = 'number' then value::numeric end;
            if number is null or number <> trunc(number) or number > 32767
               or number < (case name when 'priority' then -32768 else 1 end) then
                raise exception using errcode = 'DJ004', message = format(
                    'option %L must be a whole number from %s to 32767; it is %s',
                    name, case name when 'priority' then -32768 else 1 end, value);
            end if;
            if name = 'priority' then
                parsed.priority := number;
            else
                parsed.max_attempts := number;
            end if;
        when 'run_at' then
            -- A zone is demanded: the session's own would silently be assumed, and differs from client to client.
            if jsonb_typeof(value) <> 'string' or (value #>> '{}') !~* '\d(z|[+-]\d\d(:?\d\d)?)\s*$' then
                raise exception using errcode = 'DJ004', message = format(
                    'option ''run_at'' must be a time with its zone, such as "2030-01-31T12:00:00Z"; it is %s', value);
            end if;
            begin
                parsed.run_at := (value #>> '{}')::timestamptz;
                -- As with durations; and years before Christ are no better.
                if parsed.run_at not between '0002-01-01' and now() + interval '100 years' then
                    raise datetime_field_overflow;
                end if;
            exception when invalid_datetime_format or datetime_field_overflow or invalid_time_zone_displacement_value then
                raise exception using errcode = 'DJ004', message = format(
                    'option ''run_at'' must be a time with its zone, such as "2030-01-31T12:00:00Z"; it is %s', value);
            end;
        when 'delay' then
            parsed.run_at := now() + dispatcher.parse_duration(name, value);
        when 'timeout' then
            parsed.timeout_s := extract(epoch from dispatcher.parse_duration(name, value));
            if parsed.timeout_s <= 0 then
                raise exception using errcode = 'DJ004', message = 'option ''timeout'' must be more than zero';
            end if;
        when 'tenant', 'unique_key' then
            if jsonb_typeof(value) <> 'string' or length(value #>> '{}') not between 1 and 200 then
                raise exception using errcode = 'DJ004', message = format(
                    'option %L must be a text of 1 to 200 characters; it is %s', name, left(value::text, 100));
            end if;
            if name = 'tenant' then
                parsed.tenant := value #>> '{}';
            else
                parsed.unique_key := value #>> '{}';
            end if;
        else
            raise exception using errcode = 'DJ004', message = format(
                'unknown option %L; known options: priority, run_at, delay, tenant, unique_key, max_attempts, timeout', name);
        end case;
    end loop;
end $$;

-- Enqueues a job; where an unfinished job of that type has the same unique_key, answers that one instead.
create function dispatcher.enqueue_unique(
    type text, payload jsonb default '{}', options jsonb default '{}', out id bigint, out created boolean)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    o dispatcher.job_options := dispatcher.parse_options(options);
    max_bytes integer;
begin
    select t.max_payload_bytes into max_bytes from dispatcher.type t where t.name = enqueue_unique.type;
    if not found then
        perform dispatcher.raise_unknown_type(type);
    end if;
    perform dispatcher.check_payload(payload, max_bytes);
    loop
        insert into dispatcher.job (type, tenant, state, priority, run_at, max_attempts, timeout_s, unique_key, payload)
        values (enqueue_unique.type, o.tenant, case when o.run_at > now() then 'scheduled' else 'pending' end, o.priority,
                o.run_at, o.max_attempts, o.timeout_s, o.unique_key, enqueue_unique.payload)
        on conflict (type, live_key) where live_key is not null do nothing
        returning job.id into enqueue_unique.id;
        created := found;
        exit when created;
        select j.id into enqueue_unique.id from dispatcher.job j
        where j.type = enqueue_unique.type and j.live_key = o.unique_key;
        exit when found;  -- else it ended in between: insert again
    end loop;
end $$;

create function dispatcher.enqueue(type text, payload jsonb default '{}', options jsonb default '{}') returns bigint
language sql security definer set search_path = pg_catalog, pg_temp
as $$ select e.id from dispatcher.enqueue_unique(type, payload, options) e $$;

-- Enqueues one job a payload, all or none; ids come back in the payloads' order.
create function dispatcher.enqueue_many(type text, payloads jsonb[], options jsonb default '{}') returns setof bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    o dispatcher.job_options := dispatcher.parse_options(options);
    max_bytes integer;
    bad integer;
    bad_payload jsonb;
    reason text;
    code text;
begin
    if o.unique_key is not null then
        raise exception using errcode = 'DJ004', message = 'option ''unique_key'' names one job; it does not go with many';
    end if;
    select t.max_payload_bytes into max_bytes from dispatcher.type t where t.name = enqueue_many.type;
    if not found then
        perform dispatcher.raise_unknown_type(type);
    end if;
    select p.position, p.payload into bad, bad_payload from unnest(payloads) with ordinality p (payload, position)
    where p.payload is null or jsonb_typeof(p.payload) <> 'object'
       or octet_length(p.payload::text) > max_bytes
    order by p.position limit 1;
    if found then
        begin
            perform dispatcher.check_payload(bad_payload, max_bytes);
        exception when sqlstate 'DJ002' or sqlstate 'DJ003' then
            get stacked diagnostics reason = message_text, code = returned_sqlstate;
            raise exception using errcode = code, message = format('payload %s: %s', bad, reason);
        end;
    end if;
    return query
        insert into dispatcher.job (type, tenant, state, priority, run_at, max_attempts, timeout_s, payload)
        select enqueue_many.type, o.tenant, case when o.run_at > now() then 'scheduled' else 'pending' end, o.priority,
               o.run_at, o.max_attempts, o.timeout_s, p.payload
        from unnest(payloads) with ordinality p(payload, position) order by p.position
        returning job.id;
end $$;

create function dispatcher.raise_not_found(id bigint) returns void
language plpgsql as $$
begin
    raise exception using errcode = 'DJ005', message = format('there is no job %s', id);
end $$;

-- Cancels a job. Answers the state it leaves the job in: canceled; running, where its owner was asked to stop; or the final
-- state in which it already was. Decided by the guards of its own updates: a look before them could be outdated.
create function dispatcher.cancel(id bigint) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    left_in text;
    job_owner integer;
begin
    loop
        update dispatcher.job set state = 'canceled', finished_at = now()
        where id = cancel.id and state in ('scheduled', 'blocked', 'pending');
        if found then
            return 'canceled';
        end if;
        update dispatcher.job set cancel_requested = true where id = cancel.id and state = 'running' returning owner into job_owner;
        if found then
            perform pg_notify('dispatcher_replica_' || job_owner, 'cancel ' || cancel.id);
            return 'running';
        end if;
        select j.state into left_in from dispatcher.job j where j.id = cancel.id;
        if not found then
            perform dispatcher.raise_not_found(cancel.id);
        end if;
        if left_in in ('succeeded', 'partial', 'failed', 'canceled') then
            return left_in;
        end if;
    end loop;
end $$;

-- Runs an ended job again, or a scheduled one at once, with a fresh count of failures. Answers pending.
create function dispatcher.retry(id bigint) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    was text;
begin
    begin
        update dispatcher.job
        set state = 'pending', run_at = now(), failures = 0, cancel_requested = false, timed_out = false,
            started_at = null, finished_at = null, owner = null, progress = null, progress_message = null,
            result = null, result_url = null
        where id = retry.id and state in ('failed', 'partial', 'canceled', 'scheduled');
        if found then
            return 'pending';
        end if;
    exception when unique_violation then
        raise exception using errcode = 'DJ007', message = format(
            'job %s cannot run again: another unfinished job has its unique key', retry.id);
    end;
    select j.state into was from dispatcher.job j where j.id = retry.id;
    if not found then
        perform dispatcher.raise_not_found(retry.id);
    end if;
    raise exception using errcode = 'DJ006', message = format(
        'job %s is %s; only failed, partial, canceled and scheduled jobs can be retried', retry.id, was);
end $$;

-- The caller's transaction and the job's row stand or fall together: so a lost attempt must fail the transaction, and a
-- savepoint, inside which that failure could be swallowed, is refused. Within one, a row's xmin is not the transaction's id.
create function dispatcher.check_still_running(id bigint, attempt integer, row_xmin xid) returns void
language plpgsql as $$
begin
    if row_xmin is null then
        raise exception using errcode = 'DJ008', message = format(
            'attempt %s of job %s is no longer the running one; nothing of this transaction stays', attempt, id);
    end if;
    if row_xmin::text <> ((pg_current_xact_id()::text::numeric) % 4294967296)::text then
        raise exception using errcode = 'DJ009', message = 'not inside a savepoint: call it in the outermost transaction';
    end if;
end $$;

-- Ends the running attempt as succeeded, in the caller's own transaction.
create function dispatcher.complete(id bigint, attempt integer, result jsonb default null) returns void
language plpgsql as $$
#variable_conflict use_column
declare
    row_xmin xid;
begin
    update dispatcher.job set state = 'succeeded', finished_at = now(), result = complete.result, timed_out = false
    where id = complete.id and attempt = complete.attempt and state = 'running' returning xmin into row_xmin;
    perform dispatcher.check_still_running(id, attempt, row_xmin);
end $$;

-- Leaves a value for the next attempt, in the caller's own transaction.
create function dispatcher.checkpoint(id bigint, attempt integer, value jsonb) returns void
language plpgsql as $$
#variable_conflict use_column
declare
    row_xmin xid;
begin
    update dispatcher.job set checkpoint = checkpoint.value
    where id = checkpoint.id and attempt = checkpoint.attempt and state = 'running' returning xmin into row_xmin;
    perform dispatcher.check_still_running(id, attempt, row_xmin);
end $$;

create view dispatcher.jobs as
select j.id, j.type, nullif(j.tenant, '') as tenant, j.state, j.priority, j.payload,
       case when j.state = 'succeeded' then 100 else coalesce(j.progress, 0) end as progress,
       j.progress_message, j.result, j.result_url, coalesce(j.errors, '[]'::jsonb) as errors, j.attempt, j.failures,
       coalesce(j.max_attempts, t.max_attempts) as max_attempts,
       make_interval(secs => coalesce(j.timeout_s, t.timeout_s)) as timeout,
       j.unique_key, j.created_at, coalesce(j.run_at, j.created_at) as run_at, j.started_at, j.finished_at, j.owner,
       j.cancel_requested, j.timed_out
from dispatcher.job j left join dispatcher.type t on t.name = j.type;

revoke all on all functions in schema dispatcher from public;
grant execute on function dispatcher.enqueue(text, jsonb, jsonb), dispatcher.enqueue_unique(text, jsonb, jsonb),
    dispatcher.enqueue_many(text, jsonb[], jsonb), dispatcher.cancel(bigint), dispatcher.retry(bigint) to public;
