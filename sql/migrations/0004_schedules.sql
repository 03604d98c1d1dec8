-- Schedules: jobs by the calendar.

create table dispatcher.schedule (
    name text collate "C" primary key check (name ~ '^[A-Za-z0-9_.:/-]{1,200}$'),
    cron text not null,
    zone text not null default 'UTC',
    type text collate "C" not null,
    payload jsonb not null default '{}',
    options jsonb not null default '{}',
    catch_up text not null default 'one' check (catch_up in ('skip', 'one', 'all')),
    paused_at timestamptz,
    paused_by text,
    next_at timestamptz,                               -- null: the leader has yet to work it out
    since timestamptz not null default clock_timestamp(), -- from when on it counts: added, changed in its calendar, or resumed
    last_at timestamptz,                               -- the due time that was fired last
    last_job_id bigint,
    error text,                                        -- why the leader cannot work it out
    created_at timestamptz not null default now(),
    changed_at timestamptz not null default now(),
    changed_by text not null default session_user
);
create index schedule_due on dispatcher.schedule (next_at nulls first) where paused_at is null and error is null;

create view dispatcher.schedules as
select s.name, s.cron, s.zone, s.type, s.payload, s.options, s.catch_up, s.paused_at, s.paused_by, s.next_at, s.last_at, s.last_job_id,
       s.error, s.created_at, s.changed_at, s.changed_by
from dispatcher.schedule s;

-- The leader looks at the schedules once this transaction has committed.
create function dispatcher.announce_schedules() returns void
language sql as $$ select pg_notify('dispatcher_fleet', 'schedules') $$;

-- One field of a cron expression: `low` to `high`, by number or by name (the first of which stands for `low`).
create function dispatcher.check_cron_field(title text, field text, low integer, high integer, names text[], special text)
returns void immutable language plpgsql as $$
declare
    term text;
    parts text[];
    bounds integer[];
begin
    foreach term in array string_to_array(upper(field), ',') loop
        continue when special is not null and term ~ special;
        parts := regexp_match(term, '^(\*|([0-9A-Z]{1,4})(?:-([0-9A-Z]{1,4}))?)(?:/([0-9]{1,4}))?$');
        bounds := array(
            select case when v ~ '^[0-9]+$' then v::integer else array_position(names, v) - 1 + low end
            from unnest(parts[2:3]) with ordinality as p (v, n) where v is not null order by n);
        if parts is null or parts[4]::integer = 0 or array_position(bounds, null) is not null
           or bounds[1] < low or coalesce(bounds[2], bounds[1]) > high or bounds[2] < bounds[1] then
            raise exception using errcode = 'DJ011', message = format(
                'the cron expression has a bad %s: %L', title, left(field, 50));
        end if;
    end loop;
end $$;

-- Five fields as cron knows them. What this lets pass and the leader cannot work out is said in the schedule's `error`.
create function dispatcher.check_cron(cron text) returns void
immutable language plpgsql as $$
declare
    f text[] := regexp_split_to_array(trim(e' \t\r\n' from cron), '\s+');
begin
    if f is null or cardinality(f) <> 5 or length(cron) > 1000 then
        raise exception using errcode = 'DJ011', message = format(
            'a cron expression has five fields: minute, hour, day of the month, month, day of the week; it is %L', left(cron, 100));
    end if;
    perform dispatcher.check_cron_field('minute', f[1], 0, 59, '{}', null),
            dispatcher.check_cron_field('hour', f[2], 0, 23, '{}', null),
            dispatcher.check_cron_field('day of the month', f[3], 1, 31, '{}', '^LW?$'),
            dispatcher.check_cron_field('month', f[4], 1, 12, '{JAN,FEB,MAR,APR,MAY,JUN,JUL,AUG,SEP,OCT,NOV,DEC}', null),
            dispatcher.check_cron_field('day of the week', f[5], 0, 7, '{SUN,MON,TUE,WED,THU,FRI,SAT}',
                                        '^([0-7]L|([0-7]|SUN|MON|TUE|WED|THU|FRI|SAT)#[1-5])$');
    -- A day of the week that is not every one would do as well.
    if f[5] like '*%' and (
        f[3] ~ '^(,?0*3[01]([-/][0-9]+)*)+$' and upper(f[4]) ~ '^(,?(0*2|FEB))+$'
        or f[3] ~ '^(,?0*31([-/][0-9]+)*)+$' and upper(f[4]) ~ '^(,?(0*([2469]|11)|FEB|APR|JUN|SEP|NOV))+$') then
        raise exception using errcode = 'DJ011', message = format(
            'the cron expression %L is never due: no such month has such a day', left(cron, 100));
    end if;
end $$;

-- Adds a schedule or changes it. Options are those of enqueue, as far as they make sense, and `zone` and `catch_up`.
create function dispatcher.add_schedule(name text, cron text, type text, payload jsonb default '{}', options jsonb default '{}')
returns void language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    given jsonb := coalesce(nullif(options, 'null'), '{}');
    own_zone text;
    own_catch_up text;
    bad text;
    max_bytes integer;
begin
    if name is null or name !~ '^[A-Za-z0-9_.:/-]{1,200}$' then
        raise exception using errcode = 'DJ011', message =
            'a schedule is named by 1 to 200 letters, digits and the signs _ . : / -';
    end if;
    perform dispatcher.check_cron(cron);
    if jsonb_typeof(given) <> 'object' then
        raise exception using errcode = 'DJ004', message = 'the options must be a JSON object';
    end if;
    own_zone := coalesce(given ->> 'zone', 'UTC');
    own_catch_up := coalesce(given ->> 'catch_up', 'one');
    if own_zone in ('localtime', 'posixrules') or not exists (select from pg_timezone_names z where z.name = own_zone) then
        raise exception using errcode = 'DJ011', message = format(
            'there is no time zone %L: give a name such as Europe/Berlin or UTC', left(own_zone, 100));
    end if;
    if own_catch_up not in ('skip', 'one', 'all') then
        raise exception using errcode = 'DJ004', message = format(
            'option ''catch_up'' must be "skip", "one" or "all"; it is %L', left(own_catch_up, 100));
    end if;
    given := given - array['zone', 'catch_up'];
    select k into bad from jsonb_object_keys(given) k
    where k in ('run_at', 'delay', 'after', 'on_failure', 'parent', 'callback', 'unique_keys') limit 1;
    if found then
        raise exception using errcode = 'DJ004', message = format('option %L makes no sense for a schedule', bad);
    end if;
    perform dispatcher.parse_options(given);
    select t.max_payload_bytes into max_bytes from dispatcher.type t where t.name = add_schedule.type;
    if not found then
        perform dispatcher.raise_unknown_type(type);
    end if;
    perform dispatcher.check_payload(payload, max_bytes);
    insert into dispatcher.schedule as s (name, cron, zone, type, payload, options, catch_up)
    values (add_schedule.name, add_schedule.cron, own_zone, add_schedule.type, add_schedule.payload, given, own_catch_up)
    on conflict (name) do update
    set cron = excluded.cron, zone = excluded.zone, type = excluded.type, payload = excluded.payload, options = excluded.options,
        catch_up = excluded.catch_up, error = null, changed_at = now(), changed_by = session_user,
        next_at = case when (s.cron, s.zone) = (excluded.cron, excluded.zone) then s.next_at end,
        since = case when (s.cron, s.zone) = (excluded.cron, excluded.zone) then s.since else clock_timestamp() end;
    perform dispatcher.announce_schedules();
end $$;

create function dispatcher.raise_no_schedule(name text) returns void
language plpgsql as $$
begin
    raise exception using errcode = 'DJ010', message = format('there is no schedule %L', left(name, 200));
end $$;

create function dispatcher.remove_schedule(name text) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
    delete from dispatcher.schedule where name = remove_schedule.name;
    if not found then
        perform dispatcher.raise_no_schedule(name);
    end if;
end $$;

-- Answers whether it was not paused before.
create function dispatcher.pause_schedule(name text) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    since timestamptz;
begin
    select paused_at into since from dispatcher.schedule where name = pause_schedule.name for update;
    if not found then
        perform dispatcher.raise_no_schedule(name);
    end if;
    update dispatcher.schedule set paused_at = now(), paused_by = session_user where name = pause_schedule.name and paused_at is null;
    return since is null;
end $$;

-- Goes on from now: what was due during the pause is not caught up. Answers whether it was paused, or stopped by an error.
create function dispatcher.resume_schedule(name text) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
    perform from dispatcher.schedule where name = resume_schedule.name for update;
    if not found then
        perform dispatcher.raise_no_schedule(name);
    end if;
    update dispatcher.schedule set paused_at = null, paused_by = null, error = null, next_at = null, since = clock_timestamp()
    where name = resume_schedule.name and (paused_at is not null or error is not null);
    if not found then
        return false;
    end if;
    perform dispatcher.announce_schedules();
    return true;
end $$;

-- Enqueues its job now, once, paused or not; the next due time stays. Answers the job's id.
create function dispatcher.trigger_schedule(name text) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    found_row dispatcher.schedule;
begin
    select * into found_row from dispatcher.schedule where name = trigger_schedule.name;
    if not found then
        perform dispatcher.raise_no_schedule(name);
    end if;
    -- Its row is left alone: locked by an open transaction, it could not be fired.
    return dispatcher.enqueue(found_row.type, found_row.payload, found_row.options);
end $$;

revoke all on function dispatcher.add_schedule(text, text, text, jsonb, jsonb), dispatcher.remove_schedule(text),
    dispatcher.pause_schedule(text), dispatcher.resume_schedule(text), dispatcher.trigger_schedule(text) from public;
