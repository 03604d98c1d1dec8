-- Batches and dependencies.
--
-- Whatever ends and has a batch or jobs that wait for it leaves a mark in its own transaction; the leader works marks off in
-- transactions of its own. So two last ones that end at the same time need not see each other. A user's transaction that
-- needs several rows locks them in this order: the batch, its job, other jobs; the leader passes by what it finds locked.

alter table dispatcher.job add column parent_id bigint;   -- the batch it belongs to
alter table dispatcher.job add column followed boolean;   -- others were enqueued after it

-- The open children of a batch are counted from here; `listed` changes only where other indexes change as well.
create index job_parent on dispatcher.job (parent_id, listed, id) where parent_id is not null;

-- Beside the batch's own job, of type `batch`, which runs as long as a child is open, on no replica and against no limit. The
-- row's lock orders who adds children, who cancels, who retries and who ends the batch.
create table dispatcher.batch (
    job_id bigint primary key,
    total integer not null,
    succeeded integer not null default 0,              -- children that ended and whose marks were worked off,
    partial integer not null default 0,                -- less those that run again, counted at once
    failed integer not null default 0,
    canceled integer not null default 0,
    cancel_requested boolean not null default false,
    ended_at timestamptz,
    callback jsonb,                                    -- {type, payload, options}
    callback_id bigint                                 -- the job of it: after the batch, however that ends
) with (fillfactor = 50);
create index batch_open on dispatcher.batch (job_id) where ended_at is null;

-- job_id runs after after_id. Stays as long as the job, whose executor may read its predecessors' results.
create table dispatcher.dependency (
    job_id bigint not null,
    after_id bigint not null,
    on_failure text not null check (on_failure in ('cancel', 'run')),
    outcome text,                                      -- the final state of after_id, once the leader has seen it
    primary key (job_id, after_id)
);
create index dependency_after on dispatcher.dependency (after_id, job_id);
create index dependency_open on dispatcher.dependency (job_id) where outcome is null;

-- Marks: "this job has ended", or "look whether this job still has to wait".
create table dispatcher.follow_up (
    id bigint generated always as identity primary key,
    job_id bigint not null,
    parent_id bigint,
    became text                                        -- its final state; null: only look
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0,
        vacuum_truncate = false);

create function dispatcher.follow_lock() returns integer immutable language sql return 1146310663;
create function dispatcher.order_lock() returns integer immutable language sql return 1146310664;

create function dispatcher.mark_ended() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    insert into dispatcher.follow_up (job_id, parent_id, became) values (new.id, new.parent_id, new.state);
    return null;
end $$;

create trigger ended after update of state on dispatcher.job for each row
when ((new.parent_id is not null or new.followed)
      and new.state in ('succeeded', 'partial', 'failed', 'canceled')
      and old.state not in ('succeeded', 'partial', 'failed', 'canceled'))
execute function dispatcher.mark_ended();

-- Notifies each leader, unless it is awake and will look by itself. A hint, behind a space, names a type that has a job without
-- a tenant: so a leader that has nothing else to do can claim it before it looks around. A server without room for one more
-- lock has none for NOTIFY's either: then the commit must not fail for it, and the leader's poll finds the job.
create function dispatcher.wake_leaders(hint text default '') returns void
language plpgsql as $$
begin
    perform pg_notify('dispatcher_' || l.number, hint) from dispatcher.lease l
    where case when pg_try_advisory_xact_lock_shared(dispatcher.doze_lock(), l.number)
          then pg_try_advisory_xact_lock_shared(dispatcher.awake_lock(), l.number) else true end;
exception when out_of_memory then
    null;
end $$;

create or replace function dispatcher.signal() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform dispatcher.wake_leaders(case when new.state = 'pending' and new.tenant = '' then ' ' || new.type else '' end);
    return null;
end $$;

create function dispatcher.signal_marks() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform dispatcher.wake_leaders();
    return null;
end $$;

create constraint trigger signal after insert on dispatcher.follow_up
deferrable initially deferred for each row
when (current_setting('dispatcher.signaled', true) is distinct from '1'
      and set_config('dispatcher.signaled', '1', true) = '1')
execute function dispatcher.signal_marks();

-- What refers to a job goes with it. Nobody waits for ever for a job that was deleted: in its batch it counts as canceled.
create function dispatcher.tidy() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
    with freed as (
        update dispatcher.dependency d set outcome = g.state
        from gone g
        where d.after_id = g.id and d.outcome is null and g.state in ('succeeded', 'partial', 'failed', 'canceled'))
    insert into dispatcher.follow_up (job_id)
    select d.job_id from gone g join dispatcher.dependency d on d.after_id = g.id where d.outcome is null;
    insert into dispatcher.follow_up (job_id, parent_id, became)
    select g.id, g.parent_id, 'canceled' from gone g
    where g.parent_id is not null and g.state in ('scheduled', 'blocked', 'pending', 'running');
    delete from dispatcher.dependency d using gone g where d.job_id = g.id;
    delete from dispatcher.batch b using gone g where b.job_id = g.id;
    return null;
end $$;

create trigger tidy after delete on dispatcher.job referencing old table as gone
for each statement execute function dispatcher.tidy();

-- Whether an unfinished job was enqueued after this one, as it is by now: a statement that has come to hold the job's lock still
-- sees other tables as they were when it began.
create function dispatcher.is_awaited(id bigint) returns boolean
volatile language plpgsql as $$
begin
    return exists (
        select from dispatcher.dependency d join dispatcher.job f on f.id = any(array[d.job_id])
        where d.after_id = is_awaited.id and f.state in ('scheduled', 'blocked', 'pending', 'running'));
end $$;

alter type dispatcher.job_options add attribute parent bigint, add attribute after bigint[], add attribute on_failure text,
    add attribute unique_keys text[], add attribute callback jsonb;

create function dispatcher.parse_id(name text, value jsonb) returns bigint
immutable language plpgsql as $$
declare
    number numeric := case when jsonb_typeof(value) = 'number' then value::numeric end;
begin
    if number is null or number <> trunc(number) or number not between 1 and 9223372036854775807 then
        raise exception using errcode = 'DJ004', message = format(
            'option %L takes the id of a job; it is %s', name, left(coalesce(value::text, 'null'), 100));
    end if;
    return number;
end $$;

-- Whether a text that is a time ends in a zone. The last number of a date, as in 2030-01-31, is none.
create function dispatcher.has_zone(given text) returns boolean
immutable language sql as $$
    select given ~* '(\dz|(:\d\d|t\d\d|t\d{4}|t\d{6})([.,]\d+)?[+-]\d\d(:?\d\d)?)\s*$' $$;

create or replace function dispatcher.parse_options(options jsonb, out parsed dispatcher.job_options)
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
            if jsonb_typeof(value) <> 'string' or not dispatcher.has_zone(value #>> '{}') then
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
        when 'parent' then
            parsed.parent := dispatcher.parse_id(name, value);
        when 'after' then
            if jsonb_typeof(value) = 'array' then
                parsed.after := array(select distinct dispatcher.parse_id(name, e.id)
                                      from jsonb_array_elements(value) as e (id) order by 1);
            else
                parsed.after := array[dispatcher.parse_id(name, value)];
            end if;
            parsed.after := nullif(parsed.after, '{}');
        when 'on_failure' then
            if value not in ('"cancel"', '"run"') then
                raise exception using errcode = 'DJ004', message = format(
                    'option ''on_failure'' must be "cancel" or "run"; it is %s', left(value::text, 100));
            end if;
            parsed.on_failure := value #>> '{}';
        when 'unique_keys' then
            if jsonb_typeof(value) <> 'array' or exists (
                select from jsonb_array_elements(value) as e (key)
                where not (e.key = 'null' or (jsonb_typeof(e.key) = 'string' and length(e.key #>> '{}') between 1 and 200))) then
                raise exception using errcode = 'DJ004', message =
                    'option ''unique_keys'' must be an array with a text of 1 to 200 characters, or null, for each payload';
            end if;
            parsed.unique_keys := array(select e.key from jsonb_array_elements_text(value) as e (key));
        when 'callback' then
            if jsonb_typeof(value) <> 'object' or jsonb_typeof(value -> 'type') is distinct from 'string'
               or value - array['type', 'payload', 'options'] <> '{}' then
                raise exception using errcode = 'DJ004', message =
                    'option ''callback'' must be an object with type, payload and options';
            end if;
            parsed.callback := value;
        else
            raise exception using errcode = 'DJ004', message = format(
                'unknown option %L; known options: priority, run_at, delay, tenant, unique_key, max_attempts, timeout, '
                'after, on_failure, parent; for many also unique_keys; for a batch also callback', name);
        end case;
    end loop;
    if parsed.on_failure is not null and parsed.after is null then
        raise exception using errcode = 'DJ004', message = 'option ''on_failure'' goes with ''after''';
    end if;
    if parsed.parent is not null and (parsed.unique_key is not null or parsed.unique_keys is not null) then
        raise exception using errcode = 'DJ004', message =
            'a job of a batch has no unique key: the job that exists already might not belong to the batch';
    end if;
end $$;

-- True where one of `ids` is this batch or has to wait for it. Children of the batch need not be followed: they were
-- checked when they came, and so is everything that what they wait for has come to wait for since. Whether
-- an edge is open does not matter: a retry may open it again.
create function dispatcher.waits_for(ids bigint[], batch bigint) returns boolean
stable language sql as $$
    with recursive waiting (id) as (
        select unnest(ids)
        union
        select n.id
        from waiting w cross join lateral (
            select d.after_id as id
            from dispatcher.dependency d
            where d.job_id = w.id and not exists (select from dispatcher.job j where j.id = w.id and j.parent_id = batch)
            union all
            select c.id from dispatcher.job c
            where c.parent_id = w.id and exists (select from dispatcher.dependency d where d.job_id = c.id)) n
        where w.id <> batch
    )
    select exists (select from waiting w where w.id = batch)
$$;

-- A new job takes the tenant of its batch.
create function dispatcher.parent_tenant(o dispatcher.job_options) returns text
stable language plpgsql as $$
declare
    found_tenant text;
begin
    select j.tenant into found_tenant
    from dispatcher.batch b join dispatcher.job j on j.id = b.job_id where b.job_id = o.parent;
    if not found or (o.tenant <> '' and o.tenant <> found_tenant) then
        raise exception using errcode = 'DJ004', message = format('option ''parent'': job %s is no batch%s', o.parent,
            case when o.tenant = '' then '' else format(' of tenant %L', o.tenant) end);
    end if;
    return found_tenant;
end $$;

-- Joins new jobs to their batch and puts them behind their predecessors, in the transaction that inserts them.
create function dispatcher.link(ids bigint[], o dispatcher.job_options) returns void
language plpgsql as $$
declare
    least_new bigint;
    known bigint[];
begin
    if o.parent is not null then
        update dispatcher.batch b set total = b.total + cardinality(ids)
        where b.job_id = o.parent and b.ended_at is null and not b.cancel_requested;
        if not found then
            raise exception using errcode = 'DJ006', message = format(
                'batch %s has ended or was canceled; it takes no more jobs', o.parent);
        end if;
        -- Nobody else knows a batch that this transaction made. With others one at a time draws such edges: after the batch's row, so
        -- that two who add to one batch do not wait for each other.
        if o.after is not null and not exists (
            select from dispatcher.job j where j.id = o.parent and j.xmin = pg_current_xact_id()::xid) then
            if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
                raise exception using errcode = 'DJ004', message =
                    'options ''parent'' and ''after'' together need a transaction that is READ COMMITTED';
            end if;
            perform pg_advisory_xact_lock(dispatcher.order_lock(), 0);
        end if;
    end if;
    if o.after is not null then
        -- This update and the one that ends the predecessor exclude each other: either that one leaves a mark or
        -- the leader, looking at our own mark, finds the predecessor ended.
        perform from dispatcher.job j where j.id = any(o.after) and j.followed is not true order by j.id for no key update;
        update dispatcher.job j set followed = true where j.id = any(o.after) and j.followed is not true;
        -- As a foreign key does: it may not be pruned before we commit. The new jobs themselves are there already, and count for nothing.
        least_new := (select min(i) from unnest(ids) i);
        known := array(select j.id from dispatcher.job j
                       where j.id = any(o.after) and j.tenant = o.tenant and (j.id < least_new or j.id <> all(ids)) for key share);
        if cardinality(known) < cardinality(o.after) then
            raise exception using errcode = 'DJ004', message = format(
                'option ''after'': there is no job %s%s',
                (select min(a) from unnest(o.after) a where a <> all (known)),
                case when o.tenant = '' then ' without a tenant' else format(' of tenant %L', o.tenant) end);
        end if;
        -- Only so can a cycle come about: an older job, the batch, comes to wait for a new one.
        if o.parent is not null and dispatcher.waits_for(o.after, o.parent) then
            raise exception using errcode = 'DJ004', message = format(
                'a cycle: the jobs of batch %s cannot run after job %s, which waits for that batch',
                o.parent, array_to_string(o.after, ', '));
        end if;
        insert into dispatcher.dependency (job_id, after_id, on_failure)
        select i, a, coalesce(o.on_failure, 'cancel') from unnest(ids) i cross join unnest(o.after) a;
        insert into dispatcher.follow_up (job_id) select unnest(ids);
    end if;
end $$;

-- Why Python's JSON reader is not sure to read a value that has more than 1000 bytes; null if it is: one job that cannot be read would
-- be enough, and nobody could look at a list with it. The path through all values is slow, the look at the text before it is not.
create function dispatcher.unreadable(value jsonb, bytes integer) returns text
immutable language plpgsql as $$
begin
    if jsonb_path_exists(value, 'strict $.**{500} ? (@.type() == "array" || @.type() == "object")') then
        return 'is nested too deeply; the limit is 500 levels';
    elsif bytes > 4300 and value::text ~ '[0-9]{255}'
          and jsonb_path_exists(value, 'strict $.** ? (@.type() == "number" && (@ >= 1e4300 || @ <= -1e4300))') then
        return 'has a number of more than 4300 digits';
    end if;
    return null;
end $$;

create or replace function dispatcher.check_payload(payload jsonb, max_bytes integer) returns void
immutable language plpgsql as $$
declare
    bytes integer;
    reason text;
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
    reason := case when bytes > 1000 then dispatcher.unreadable(payload, bytes) end;
    if reason is not null then
        raise exception using errcode = 'DJ002', message = 'the payload ' || reason;
    end if;
end $$;

create or replace function dispatcher.enqueue_unique(
    type text, payload jsonb default '{}', options jsonb default '{}', out id bigint, out created boolean)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    o dispatcher.job_options;  -- null where there are none: most jobs come without, and then this is a third cheaper
    max_bytes integer;
    bytes integer := octet_length(payload::text);
begin
    if options <> '{}' then
        o := dispatcher.parse_options(options);
    end if;
    if o.unique_keys is not null or o.callback is not null then
        raise exception using errcode = 'DJ004', message =
            'options ''unique_keys'' and ''callback'' are for many jobs and for a batch, not for one job';
    end if;
    select t.max_payload_bytes into max_bytes from dispatcher.type t where t.name = enqueue_unique.type;
    if not found then
        perform dispatcher.raise_unknown_type(type);
    end if;
    if jsonb_typeof(payload) is distinct from 'object' or bytes > max_bytes or (
        bytes > 1000 and dispatcher.unreadable(payload, bytes) is not null) then
        perform dispatcher.check_payload(payload, max_bytes);
    end if;
    if o is null then
        insert into dispatcher.job (type, state, payload) values (enqueue_unique.type, 'pending', enqueue_unique.payload)
        returning job.id into enqueue_unique.id;
        created := true;
        return;
    end if;
    if o.parent is not null then
        o.tenant := dispatcher.parent_tenant(o);
    end if;
    loop
        insert into dispatcher.job (type, tenant, state, priority, run_at, max_attempts, timeout_s, unique_key, parent_id, payload)
        values (enqueue_unique.type, o.tenant,
                case when o.after is not null then 'blocked' when o.run_at > now() then 'scheduled' else 'pending' end, o.priority,
                o.run_at, o.max_attempts, o.timeout_s, o.unique_key, o.parent, enqueue_unique.payload)
        on conflict (type, live_key) where live_key is not null do nothing
        returning job.id into enqueue_unique.id;
        created := found;
        exit when created;
        select j.id into enqueue_unique.id from dispatcher.job j
        where j.type = enqueue_unique.type and j.live_key = o.unique_key;
        exit when found;  -- else it ended in between: insert again
    end loop;
    if created and (o.parent is not null or o.after is not null) then
        perform dispatcher.link(array[id], o);
    end if;
end $$;

create function dispatcher.check_payloads(type text, payloads jsonb[]) returns void
language plpgsql as $$
declare
    max_bytes integer;
    bad integer;
    bad_payload jsonb;
    reason text;
    code text;
begin
    select t.max_payload_bytes into max_bytes from dispatcher.type t where t.name = check_payloads.type;
    if not found then
        perform dispatcher.raise_unknown_type(type);
    end if;
    select p.position, p.payload into bad, bad_payload from unnest(payloads) with ordinality p (payload, position)
    cross join lateral (select octet_length(p.payload::text) as bytes offset 0) b
    where p.payload is null or jsonb_typeof(p.payload) <> 'object'
       or b.bytes > max_bytes or (b.bytes > 1000 and dispatcher.unreadable(p.payload, b.bytes) is not null)
    order by p.position limit 1;
    if found then
        begin
            perform dispatcher.check_payload(bad_payload, max_bytes);
        exception when sqlstate 'DJ002' or sqlstate 'DJ003' then
            get stacked diagnostics reason = message_text, code = returned_sqlstate;
            raise exception using errcode = code, message = format('payload %s: %s', bad, reason);
        end;
    end if;
end $$;

-- Enqueues one job a payload, all or none, but those whose unique key an unfinished job has: then that one's id is
-- answered. Answers come in the payloads' order, and so do the ids of new jobs.
create function dispatcher.enqueue_many_unique(type text, payloads jsonb[], options jsonb default '{}')
returns table (id bigint, created boolean)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    o dispatcher.job_options := dispatcher.parse_options(options);
    many integer := coalesce(cardinality(payloads), 0);
    new_ids bigint[];
    answers bigint[];
begin
    if o.unique_key is not null then
        raise exception using errcode = 'DJ004', message =
            'option ''unique_key'' names one job; for many give ''unique_keys'', one for each payload';
    end if;
    if o.callback is not null then
        raise exception using errcode = 'DJ004', message = 'option ''callback'' is for a batch';
    end if;
    if cardinality(o.unique_keys) <> many then
        raise exception using errcode = 'DJ004', message = format(
            'there are %s payloads and %s unique_keys', many, cardinality(o.unique_keys));
    end if;
    perform dispatcher.check_payloads(type, payloads);
    if o.parent is not null then
        o.tenant := dispatcher.parent_tenant(o);
    end if;
    new_ids := array(select nextval('dispatcher.job_id_seq') from generate_series(1, many));
    loop
        begin
            -- In the keys' order: two callers with the same keys must not wait for each other in a circle.
            insert into dispatcher.job (id, type, tenant, state, priority, run_at, max_attempts, timeout_s, unique_key, parent_id, payload)
            overriding system value
            select p.id, enqueue_many_unique.type, o.tenant,
                   case when o.after is not null then 'blocked' when o.run_at > now() then 'scheduled' else 'pending' end,
                   o.priority, o.run_at, o.max_attempts, o.timeout_s, p.key, o.parent, p.payload
            from unnest(payloads, o.unique_keys, new_ids) as p (payload, key, id) order by p.key, p.id
            on conflict (type, live_key) where live_key is not null do nothing;
            -- Subqueries, not joins: a caller's planner might read the whole table for a join.
            answers := array(
                select case when p.key is null then p.id else coalesce(
                    (select made.id from dispatcher.job made where made.id = p.id),
                    (select old.id from dispatcher.job old where old.type = enqueue_many_unique.type and old.live_key = p.key)) end
                from unnest(o.unique_keys, new_ids) with ordinality as p (key, id, position) order by p.position);
            exit when array_position(answers, null) is null;
            -- Else one ended in between. All over again: to add its key behind greater ones would leave their order.
            raise exception using errcode = 'AGAIN', message = 'a job ended in between';
        exception when sqlstate 'AGAIN' then null;
        end;
    end loop;
    if o.parent is not null or o.after is not null then
        perform dispatcher.link(array(select n from unnest(new_ids, answers) as p (n, a) where n = a), o);
    end if;
    return query select p.a, p.n = p.a from unnest(new_ids, answers) with ordinality as p (n, a, position) order by p.position;
end $$;

create or replace function dispatcher.enqueue_many(type text, payloads jsonb[], options jsonb default '{}') returns setof bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    o dispatcher.job_options;
begin
    if options ?| array['unique_key', 'unique_keys', 'parent', 'after', 'callback'] then
        return query select e.id from dispatcher.enqueue_many_unique(type, payloads, options) e;
        return;
    end if;
    o := dispatcher.parse_options(options);
    perform dispatcher.check_payloads(type, payloads);
    return query
        insert into dispatcher.job (type, tenant, state, priority, run_at, max_attempts, timeout_s, payload)
        select enqueue_many.type, o.tenant, case when o.run_at > now() then 'scheduled' else 'pending' end, o.priority,
               o.run_at, o.max_attempts, o.timeout_s, p.payload
        from unnest(payloads) with ordinality p(payload, position) order by p.position
        returning job.id;
end $$;

-- Enqueues one job a payload as the children of a new batch; answers the batch's id.
create function dispatcher.enqueue_batch(type text, payloads jsonb[], options jsonb default '{}') returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    o dispatcher.job_options := dispatcher.parse_options(options);
    batch_id bigint;
    answer_id bigint;
begin
    if coalesce(cardinality(payloads), 0) = 0 then
        raise exception using errcode = 'DJ004', message = 'a batch needs at least one job';
    end if;
    if o.parent is not null or o.unique_key is not null or o.unique_keys is not null then
        raise exception using errcode = 'DJ004', message =
            'options ''parent'', ''unique_key'' and ''unique_keys'' do not go with a batch';
    end if;
    insert into dispatcher.job (type, tenant, state, priority, started_at, max_attempts, payload)
    values ('batch', o.tenant, 'running', o.priority, now(), 1, jsonb_build_object('type', enqueue_batch.type))
    returning job.id into batch_id;
    insert into dispatcher.batch (job_id, total, callback) values (batch_id, 0, o.callback);
    perform dispatcher.enqueue_many_unique(
        type, payloads, coalesce(options, '{}') - 'callback' || jsonb_build_object('parent', batch_id));
    if o.callback is not null then
        perform dispatcher.enqueue_callback(batch_id);
    end if;
    return batch_id;
end $$;

create function dispatcher.enqueue_callback(batch_id bigint) returns void
language plpgsql as $$
declare
    spec jsonb;
    batch_tenant text;
    extra jsonb;
begin
    select b.callback, j.tenant into spec, batch_tenant
    from dispatcher.batch b join dispatcher.job j on j.id = b.job_id where b.job_id = batch_id;
    extra := coalesce(nullif(spec -> 'options', 'null'), '{}');
    if jsonb_typeof(extra) <> 'object' or extra ?| array['after', 'on_failure', 'parent', 'unique_key', 'tenant'] then
        raise exception using errcode = 'DJ004', message =
            'the options of a callback must be an object without after, on_failure, parent, tenant and unique_key';
    end if;
    update dispatcher.batch b
    set callback_id = dispatcher.enqueue(
        spec ->> 'type', coalesce(nullif(spec -> 'payload', 'null'), '{}'),
        extra || jsonb_build_object('after', batch_id, 'on_failure', 'run', 'tenant', nullif(batch_tenant, '')))
    where b.job_id = batch_id;
exception when sqlstate 'DJ001' or sqlstate 'DJ002' or sqlstate 'DJ003' or sqlstate 'DJ004' then
    raise exception using errcode = sqlstate, message = 'callback: ' || sqlerrm;
end $$;

-- Whether a job may still run in a replica that postponed it as it ended: it has an owner until it is due.
create function dispatcher.may_still_run(state text, owner integer, run_at timestamptz) returns boolean
stable language sql as $$
    select state = 'scheduled' and owner is not null and run_at > now()
$$;

-- Cancels what is open of a batch: what waits at once; what runs is asked to stop. Looks again until all is: a job may come
-- from one state to another between two looks.
create function dispatcher.cancel_children(batch_id bigint) returns void
language plpgsql as $$
declare
    job_owner integer;
begin
    loop
        update dispatcher.job j set state = 'canceled', finished_at = now()
        where j.parent_id = batch_id and j.listed in ('pending', 'scheduled')
          and not dispatcher.may_still_run(j.state, j.owner, j.run_at);
        update dispatcher.job j set state = 'canceled', finished_at = now()
        where j.parent_id = batch_id and j.listed is null and j.state = 'blocked';
        for job_owner in
            with asked as (
                update dispatcher.job j set cancel_requested = true
                where j.parent_id = batch_id and j.listed is null and j.state = 'running' and not j.cancel_requested
                returning j.owner)
            select distinct a.owner from asked a where a.owner is not null
        loop
            perform pg_notify('dispatcher_replica_' || job_owner, 'cancel');
        end loop;
        update dispatcher.job j set cancel_requested = true  -- the stager cancels it
        where j.parent_id = batch_id and j.listed = 'scheduled' and not j.cancel_requested
          and dispatcher.may_still_run(j.state, j.owner, j.run_at);
        exit when not exists (
            select from dispatcher.job j
            where j.parent_id = batch_id and (j.listed is null or j.listed <> 'troubled')
              and (j.state in ('pending', 'scheduled', 'blocked') or j.state = 'running') and not j.cancel_requested);
    end loop;
end $$;

create or replace function dispatcher.cancel(id bigint) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    left_in text;
    job_owner integer;
begin
    update dispatcher.batch set cancel_requested = true where job_id = cancel.id and ended_at is null;
    if found then
        update dispatcher.job set cancel_requested = true where id = cancel.id and state = 'running';
        perform dispatcher.cancel_children(cancel.id);
        return 'running';
    end if;
    loop
        update dispatcher.job set state = 'canceled', finished_at = now()
        where id = cancel.id and state in ('scheduled', 'blocked', 'pending') and not dispatcher.may_still_run(state, owner, run_at);
        if found then
            return 'canceled';
        end if;
        update dispatcher.job set cancel_requested = true
        where id = cancel.id and (state = 'running' or dispatcher.may_still_run(state, owner, run_at)) returning owner into job_owner;
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

-- Jobs that run again, and those after them that have not started, wait again for the predecessors that have not ended now. Whoever
-- holds one locked may be about to claim it, or to let another of its predecessors run again: so it is waited for.
create function dispatcher.block_again(ids bigint[]) returns void
language plpgsql as $$
begin
    with concerned as (
        select d.job_id from dispatcher.dependency d where d.job_id = any(ids)
        union
        select d.job_id from dispatcher.dependency d where d.after_id = any(ids)
    ), free as materialized (
        select w.id, w.state from concerned c join dispatcher.job w on w.id = c.job_id
        where w.state in ('pending', 'blocked') or (w.state = 'scheduled' and w.attempt = 0) order by w.id for no key update of w
    ), reopened as (
        update dispatcher.dependency d set outcome = null
        from free f, dispatcher.job p
        where d.job_id = f.id and (d.outcome is not null or f.state <> 'blocked')
          and p.id = d.after_id and p.state not in ('succeeded', 'partial', 'failed', 'canceled')
        returning d.job_id
    ), waiting as (
        update dispatcher.job j set state = 'blocked'
        where j.id in (select r.job_id from reopened r) and j.state in ('pending', 'scheduled'))
    insert into dispatcher.follow_up (job_id) select distinct r.job_id from reopened r;
end $$;

-- An ended batch runs again, since a job of it does. A callback that has been claimed already is followed by another one.
create function dispatcher.reopen_batch(batch_id bigint) returns void
language plpgsql as $$
begin
    update dispatcher.batch b set ended_at = null, cancel_requested = false where b.job_id = batch_id and b.ended_at is not null;
    if found then
        update dispatcher.job j
        set state = 'running', finished_at = null, result = null, cancel_requested = false
        where j.id = batch_id;
        perform dispatcher.block_again(array[batch_id]);
        if exists (select from dispatcher.batch b
                   where b.job_id = batch_id and b.callback is not null and not exists (
                       select from dispatcher.dependency d
                       where d.job_id = b.callback_id and d.after_id = batch_id and d.outcome is null)) then
            perform dispatcher.enqueue_callback(batch_id);
        end if;
    end if;
end $$;

-- Runs jobs of one batch, or of none, again; answers those that it did, all in one state before. What may still run in a replica
-- that ends starts no sooner.
create function dispatcher.revive(ids bigint[], out revived bigint[], out ended boolean)
language plpgsql as $$
begin
    with old as materialized (
        select j.id, j.state, dispatcher.may_still_run(j.state, j.owner, j.run_at) as may_run
        from dispatcher.job j
        where j.id = any(ids) and j.state in ('failed', 'partial', 'canceled', 'scheduled') order by j.id for no key update
    ), again as (
        update dispatcher.job j
        set state = case when o.may_run then 'scheduled' else 'pending' end, run_at = case when o.may_run then j.run_at else now() end,
            owner = case when o.may_run then j.owner end, failures = 0, cancel_requested = false, timed_out = false,
            started_at = null, finished_at = null, progress = null, progress_message = null,
            result = null, result_url = null
        from old o where j.id = o.id
        returning j.id, j.parent_id, o.state
    ), counted as (
        update dispatcher.batch b
        set partial = b.partial - n.partial, failed = b.failed - n.failed, canceled = b.canceled - n.canceled
        from (select a.parent_id, count(*) filter (where a.state = 'partial') as partial,
                     count(*) filter (where a.state = 'failed') as failed,
                     count(*) filter (where a.state = 'canceled') as canceled
              from again a where a.parent_id is not null and a.state <> 'scheduled' group by a.parent_id) n
        where b.job_id = n.parent_id
    )
    select array_agg(a.id), bool_or(a.state <> 'scheduled') into revived, ended from again a;
    if exists (select from dispatcher.dependency d where d.job_id = any(revived))
       or exists (select from dispatcher.dependency d where d.after_id = any(revived)) then
        perform dispatcher.block_again(revived);
    end if;
exception when unique_violation then
    raise exception using errcode = 'DJ007', message = format(
        'job %s cannot run again: another unfinished job has its unique key', ids[1]);
end $$;

create or replace function dispatcher.retry(id bigint) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    job record;
    again bigint[] := array[retry.id];
    done record;
    was text;
begin
    select j.parent_id, j.type = 'batch' as is_batch into job from dispatcher.job j where j.id = retry.id;
    if not found then
        perform dispatcher.raise_not_found(retry.id);
    end if;
    if job.is_batch or job.parent_id is not null then  -- the batch's lock comes first, before the rows of its jobs
        perform from dispatcher.batch b where b.job_id in (retry.id, job.parent_id) for no key update;
    end if;
    if job.is_batch then
        again := array(select j.id from dispatcher.job j
                       where j.parent_id = retry.id and j.listed = 'troubled' and j.state in ('failed', 'canceled'));
    end if;
    select r.revived, r.ended into done from dispatcher.revive(again) r;
    if done.revived is null then
        select j.state into was from dispatcher.job j where j.id = retry.id;
        if not found then  -- it was removed meanwhile
            perform dispatcher.raise_not_found(retry.id);
        end if;
        raise exception using errcode = 'DJ006', message = case when job.is_batch
            then format('batch %s has no failed or canceled jobs that could be retried', retry.id)
            else format('job %s is %s; only failed, partial, canceled and scheduled jobs can be retried', retry.id, was) end;
    end if;
    if job.is_batch then  -- what was still being canceled ends so; what runs again is no more asked to
        update dispatcher.batch b set cancel_requested = false where b.job_id = retry.id and b.cancel_requested;
        update dispatcher.job j set cancel_requested = false where j.id = retry.id and j.cancel_requested;
    end if;
    if done.ended and (job.is_batch or job.parent_id is not null) then
        perform dispatcher.reopen_batch(coalesce(job.parent_id, retry.id));
    end if;
    return (select j.state from dispatcher.job j where j.id = retry.id);
end $$;

create or replace view dispatcher.jobs as
select j.id, j.type, nullif(j.tenant, '') as tenant, j.state, j.priority, j.payload,
       case when j.state = 'succeeded' then 100 else coalesce(j.progress, 0) end as progress,
       j.progress_message, j.result, j.result_url, coalesce(j.errors, '[]'::jsonb) as errors, j.attempt, j.failures,
       coalesce(j.max_attempts, t.max_attempts) as max_attempts,
       make_interval(secs => coalesce(j.timeout_s, t.timeout_s)) as timeout,
       j.unique_key, j.created_at, coalesce(j.run_at, j.created_at) as run_at, j.started_at, j.finished_at, j.owner,
       j.cancel_requested, j.timed_out, j.parent_id
from dispatcher.job j left join dispatcher.type t on t.name = j.type;

-- Exact: the batch's row, the marks that were not yet worked off and the jobs are seen at one instant.
create view dispatcher.batches as
select p.id, p.tenant, p.state, p.type, b.total, o.scheduled, greatest(0, o.open - o.scheduled - o.pending - o.running) as blocked,
       o.pending, o.running, c.succeeded, c.partial, c.failed, c.canceled,
       b.cancel_requested, b.callback_id, p.created_at, p.finished_at
from dispatcher.batch b
join (select j.id, nullif(j.tenant, '') as tenant, j.state, j.payload ->> 'type' as type, j.created_at, j.finished_at
      from dispatcher.job j) p on p.id = b.job_id
cross join lateral (
    select (b.succeeded + count(*) filter (where f.became = 'succeeded'))::integer as succeeded,
           (b.partial + count(*) filter (where f.became = 'partial'))::integer as partial,
           (b.failed + count(*) filter (where f.became = 'failed'))::integer as failed,
           (b.canceled + count(*) filter (where f.became = 'canceled'))::integer as canceled
    from dispatcher.follow_up f where f.parent_id = b.job_id) c
cross join lateral (
    select b.total - c.succeeded - c.partial - c.failed - c.canceled as open, w.scheduled, w.pending, r.running
    from (select count(*) filter (where j.listed = 'scheduled')::integer as scheduled,
                 count(*) filter (where j.listed = 'pending')::integer as pending
          from dispatcher.job j
          where b.ended_at is null and j.parent_id = b.job_id and j.listed in ('pending', 'scheduled')) w
    cross join (select count(distinct j.id)::integer as running
                from dispatcher.claim l cross join lateral unnest(l.job_ids) as named (id)
                join dispatcher.job j on j.id = named.id
                where b.ended_at is null and j.parent_id = b.job_id and j.state = 'running') r) o;

revoke all on all functions in schema dispatcher from public;
grant execute on function dispatcher.enqueue(text, jsonb, jsonb), dispatcher.enqueue_unique(text, jsonb, jsonb),
    dispatcher.enqueue_many(text, jsonb[], jsonb), dispatcher.enqueue_many_unique(text, jsonb[], jsonb),
    dispatcher.enqueue_batch(text, jsonb[], jsonb), dispatcher.cancel(bigint), dispatcher.retry(bigint) to public;
