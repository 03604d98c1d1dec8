-- Control at run time: what operators say about types goes before what the code and the settings say.

-- From the code or the settings, as each replica publishes them.
alter table dispatcher.type add column tenant_max_running integer;
alter table dispatcher.type add column rate double precision;   -- starts a second
alter table dispatcher.type add column burst integer;
alter table dispatcher.type add column pool text not null default 'thread';   -- where its jobs run

create function dispatcher.register_lock() returns integer immutable language sql return 1146310666;

-- Types whose jobs may run on elsewhere when the replica's process is dead.
alter table dispatcher.replica add column remote_types text[] not null default '{}';

-- The server and the database in which it has taken its liveness lock. Elsewhere its row is a copy, and says nothing about it.
alter table dispatcher.replica add column server_started timestamptz;
alter table dispatcher.replica add column database_oid oid;

-- Replicas of several versions run side by side while a fleet is upgraded, and a leader breaks the rules that it does not know.
alter table dispatcher.replica add column schema_version integer not null default 1;   -- the latest that its code knows; 0.1.0 does not say
alter table dispatcher.replica add column leaving boolean not null default false;      -- it does not contend: it drains, or cannot record

-- Whether a newer replica is there to lead that can run all that this session's replica can.
create function dispatcher.is_outdated(lease integer) returns boolean
stable language sql return exists (
    select from dispatcher.replica m join dispatcher.replica n on n.lease = m.lease
    where m.lease = is_outdated.lease and m.backend_pid = pg_backend_pid() and n.schema_version > m.schema_version
      and not n.leaving and n.types @> m.types
      and dispatcher.holds_lock(dispatcher.liveness_lock(), m.id, m.backend_pid)
      and dispatcher.holds_lock(dispatcher.liveness_lock(), n.id, n.backend_pid));

-- As before, but the newest leads: an older one waits as well, since the newer one may die, and hands on what it is granted.
create or replace function dispatcher.wait_lease(
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
    exception when lock_not_available then
        held := dispatcher.holds_lock(dispatcher.lease_lock(), lease, pg_backend_pid());
    end;
    if held and dispatcher.is_outdated(lease) then
        perform pg_advisory_unlock(dispatcher.lease_lock(), lease);
        held := false;
        perform pg_sleep(0.01);  -- the newer one waits already, or is about to
    end if;
    if not held then
        select a.pid, a.backend_start, a.state, a.state_change
        into holder_pid, holder_backend_start, holder_state, holder_state_change
        from pg_locks l join pg_stat_activity a on a.pid = l.pid
        where l.locktype = 'advisory' and l.classid = dispatcher.lease_lock()::oid and l.objid = lease::oid
          and l.objsubid = 2 and l.granted
          and l.database = (select d.oid from pg_database d where d.datname = current_database());
    end if;
end $$;

-- What an operator said; null: as the code says.
create table dispatcher.control (
    type text collate "C" not null,
    tenant text collate "C" not null default '',       -- '': the type as a whole; else that tenant's limit alone
    max_running integer check (max_running >= 1),
    tenant_max_running integer check (tenant_max_running >= 1),   -- of each tenant that has no row of its own
    rate double precision check (rate between 0.000001 and 1000000),   -- so neither NaN nor infinity
    burst integer check (burst >= 1),
    paused_at timestamptz,
    paused_by text,
    changed_at timestamptz not null default now(),
    changed_by text not null default session_user,
    primary key (type, tenant)
);

-- Until when a type's rate holds its jobs back, as the leader last saw it. A hint for people, nothing relies on it.
create table dispatcher.throttle (
    type text collate "C" primary key,
    held_until timestamptz not null
) with (fillfactor = 50);

-- What explains why a job waits: the leader's own bounds, and when it was last seen at work.
alter table dispatcher.lease add column max_running integer;    -- over all types; null: no limit
alter table dispatcher.lease add column pools jsonb not null default '{}';   -- how many run at once in each of the leader's pools
alter table dispatcher.lease add column seen_at timestamptz;

-- What holds for each type, and from where: what an operator said goes before the code (and the settings of the replicas).
create view dispatcher.types as
select t.name,
       coalesce(c.max_running, t.max_running) as max_running,
       case when c.max_running is not null then 'database' when t.max_running is not null then 'code' end as max_running_from,
       coalesce(c.tenant_max_running, t.tenant_max_running) as tenant_max_running,
       case when c.tenant_max_running is not null then 'database' when t.tenant_max_running is not null then 'code' end
           as tenant_max_running_from,
       coalesce(c.rate, t.rate) as rate,
       case when c.rate is not null then 'database' when t.rate is not null then 'code' end as rate_from,
       case when coalesce(c.rate, t.rate) is not null
            then coalesce(c.burst, t.burst, greatest(1, ceil(coalesce(c.rate, t.rate)))::integer) end as burst,
       case when coalesce(c.rate, t.rate) is null then null when c.burst is not null then 'database' else 'code' end as burst_from,
       c.paused_at, c.paused_by, t.timeout_s, t.max_attempts, t.max_payload_bytes, t.payload_schema, t.description, t.published_at,
       t.pool
from dispatcher.type t left join dispatcher.control c on c.type = t.name and c.tenant = '';

create function dispatcher.check_type(name text) returns void
language plpgsql as $$
begin
    if not exists (select from dispatcher.type t where t.name = check_type.name) then
        perform dispatcher.raise_unknown_type(name);
    end if;
end $$;

-- Each leader reads the rules anew once this transaction has committed. The channel of all leases: 0.1.0 does not listen there, and
-- would not know the word.
create function dispatcher.announce_control() returns void
language sql as $$ select pg_notify('dispatcher_fleet', 'control') $$;

-- No job of the type is claimed any more; those that run go on. Answers whether it was not paused before.
create function dispatcher.pause(type text) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
    perform dispatcher.check_type(type);
    insert into dispatcher.control as c (type, paused_at, paused_by) values (pause.type, now(), session_user)
    on conflict (type, tenant) do update
    set paused_at = now(), paused_by = session_user, changed_at = now(), changed_by = session_user
    where c.paused_at is null;
    if not found then
        return false;
    end if;
    perform dispatcher.announce_control();
    return true;
end $$;

-- Answers whether it was paused.
create function dispatcher.resume(type text) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
    perform dispatcher.check_type(type);
    update dispatcher.control
    set paused_at = null, paused_by = null, changed_at = now(), changed_by = session_user
    where type = resume.type and tenant = '' and paused_at is not null;
    if not found then
        return false;
    end if;
    perform dispatcher.forget_control(type);
    perform dispatcher.announce_control();
    return true;
end $$;

-- Rows that say nothing any more go.
create function dispatcher.forget_control(type text) returns void
language sql as $$
    delete from dispatcher.control c
    where c.type = forget_control.type and num_nonnulls(c.max_running, c.tenant_max_running, c.rate, c.burst, c.paused_at) = 0
$$;

-- A whole number of one or more, or null.
create function dispatcher.parse_count(name text, value jsonb) returns integer
immutable language plpgsql as $$
declare
    number numeric := case when jsonb_typeof(value) = 'number' then value::numeric end;
begin
    if value = 'null' then
        return null;
    end if;
    if number is null or number <> trunc(number) or number not between 1 and 2147483647 then
        raise exception using errcode = 'DJ004', message = format(
            'option %L must be a whole number of 1 or more (to stop a type, pause it), or null for what the code says; it is %s',
            name, left(value::text, 100));
    end if;
    return number;
end $$;

-- Starts a second, from a number or from a text such as "100/min", or null.
create function dispatcher.parse_rate(name text, value jsonb) returns double precision
immutable language plpgsql as $$
declare
    parts text[];
    rate numeric;
begin
    if value = 'null' then
        return null;
    elsif jsonb_typeof(value) = 'number' then
        rate := value::numeric;
    elsif jsonb_typeof(value) = 'string' then
        parts := regexp_match(value #>> '{}', '^\s*([0-9]{1,12}(?:\.[0-9]{1,9})?)\s*/\s*(s|sec|second|m|min|minute|h|hour|d|day)\s*$');
        rate := parts[1]::numeric / case left(parts[2], 1) when 's' then 1 when 'm' then 60 when 'h' then 3600 else 86400 end;
    end if;
    if rate is null or rate < 0.000001 or rate > 1000000 then
        raise exception using errcode = 'DJ004', message = format(
            'option %L must be more than zero: starts a second, or a text such as "100/min", or null for what the code says; it is %s',
            name, left(value::text, 100));
    end if;
    return rate;
end $$;

-- Changes what is given of limit, tenant_limit, rate and burst; null leaves it to the code again. With `tenant`, the limit of
-- that tenant alone.
create function dispatcher.set_limit(type text, options jsonb) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    wanted dispatcher.control;
    own_tenant text := '';
    unknown text;
begin
    perform dispatcher.check_type(type);
    if options is null or jsonb_typeof(options) <> 'object' or options - 'tenant' = '{}' then
        raise exception using errcode = 'DJ004', message =
            'give at least one of limit, tenant_limit, rate and burst, in a JSON object';
    end if;
    select k into unknown from jsonb_object_keys(options) k where k not in ('limit', 'tenant_limit', 'rate', 'burst', 'tenant') limit 1;
    if found then
        raise exception using errcode = 'DJ004', message = format(
            'unknown option %L; known options: limit, tenant_limit, rate, burst, tenant', unknown);
    end if;
    if options ? 'tenant' then
        if jsonb_typeof(options -> 'tenant') <> 'string' or length(options ->> 'tenant') not between 1 and 200 then
            raise exception using errcode = 'DJ004', message = 'option ''tenant'' must be a text of 1 to 200 characters';
        elsif options ?| array['tenant_limit', 'rate', 'burst'] then
            raise exception using errcode = 'DJ004', message = 'with ''tenant'' give ''limit'' alone: the limit of that tenant';
        end if;
        own_tenant := options ->> 'tenant';
    end if;
    loop  -- somebody may remove the row in between
        insert into dispatcher.control (type, tenant) values (set_limit.type, own_tenant) on conflict (type, tenant) do nothing;
        select * into wanted from dispatcher.control where type = set_limit.type and tenant = own_tenant for update;
        exit when found;
    end loop;
    if options ? 'limit' then
        wanted.max_running := dispatcher.parse_count('limit', options -> 'limit');
    end if;
    if options ? 'tenant_limit' then
        wanted.tenant_max_running := dispatcher.parse_count('tenant_limit', options -> 'tenant_limit');
    end if;
    if options ? 'rate' then
        wanted.rate := dispatcher.parse_rate('rate', options -> 'rate');
    end if;
    if options ? 'burst' then
        wanted.burst := dispatcher.parse_count('burst', options -> 'burst');
    end if;
    if wanted.burst is not null and wanted.rate is null
       and not exists (select from dispatcher.type t where t.name = set_limit.type and t.rate is not null) then
        if not options ? 'burst' then  -- it goes with the rate that goes
            wanted.burst := null;
        else
            raise exception using errcode = 'DJ004', message = 'option ''burst'' goes with a rate, and this type has none';
        end if;
    end if;
    update dispatcher.control
    set max_running = wanted.max_running, tenant_max_running = wanted.tenant_max_running, rate = wanted.rate, burst = wanted.burst,
        changed_at = now(), changed_by = session_user
    where type = set_limit.type and tenant = own_tenant;
    if options ?| array['rate', 'burst'] then  -- what the old rate held back until when is not true any more
        delete from dispatcher.throttle where type = set_limit.type;
    end if;
    perform dispatcher.forget_control(type);
    perform dispatcher.announce_control();
end $$;

revoke all on function dispatcher.pause(text), dispatcher.resume(text), dispatcher.set_limit(text, jsonb) from public;
