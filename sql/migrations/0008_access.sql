-- Who may do what: levels of rights that the owner of the schema grants to roles, and that stay granted when a later migration
-- brings new functions and tables.

-- What was granted. The rights themselves stand in the catalog; this says which to renew.
create table dispatcher.access (
    role text not null,
    level text not null check (level in ('enqueue', 'read', 'operate', 'run')),
    granted_at timestamptz not null default now(),
    granted_by text not null default session_user,
    primary key (role, level)
);

-- The one list of what belongs to which level, by name: all functions of a name, and what does not exist is left out.
-- enqueue: may put jobs in, cancel and retry them, and see the state of a job; not payloads, results or errors.
-- read: may see everything about all jobs. operate: enqueue, read, control of types, schedules and ended
-- jobs, and what the HTTP API needs.
-- run: what the daemon does, for a role that does not own the schema: all but what is of the level owner; listed are functions
-- that users call in a transaction of their own with such a role. owner: granted to nobody.
create function dispatcher.access_rights() returns table (level text, kind text, name text, privilege text)
immutable language sql set search_path = pg_catalog, pg_temp as $$
    select 'enqueue', 'function', f.name, 'execute' from unnest(array[
        'enqueue', 'enqueue_unique', 'enqueue_many', 'enqueue_many_unique', 'enqueue_batch', 'answer', 'cancel',
        'retry']) f (name)
    union all
    select 'read', 'function', f.name, 'execute' from unnest(array[
        'explain', 'count_ended', 'match_jobs', 'lease_lock', 'liveness_lock', 'holds_lock']) f (name)
    union all
    select 'operate', 'function', f.name, 'execute' from unnest(array[
        'pause', 'resume', 'set_limit', 'add_schedule', 'remove_schedule', 'pause_schedule', 'resume_schedule',
        'trigger_schedule', 'retry_where', 'retry_step', 'purge', 'purge_step', 'create_token', 'find_token', 'revoke_token',
        'note_token_use', 'take_key', 'keep_answer', 'note_audit', 'answer_enqueues']) f (name)
    union all
    select 'run', 'function', f.name, 'execute' from unnest(array['complete', 'checkpoint']) f (name)
    union all
    select 'owner', 'function', f.name, 'all' from unnest(array[
        'access_rights', 'access_targets', 'apply_level', 'apply_access', 'begin_access', 'check_access', 'grant_access',
        'revoke_access']) f (name)
    union all
    select 'enqueue', 'table', t.name, t.privilege from (values
        ('type', 'select (name, payload_schema)'),     -- clients check payloads before they send them
        ('jobs', 'select (id, state)')) t (name, privilege)
    union all
    select 'read', 'table', t.name, 'select' from unnest(array[
        'job', 'jobs', 'type', 'types', 'claim', 'lease', 'replica', 'control', 'throttle', 'batch', 'batches', 'dependency',
        'schedule', 'schedules', 'migration', 'recent_migration', 'tally']) t (name)
    union all
    select 'operate', 'table', t.name, 'select' from unnest(array['tokens', 'audit']) t (name)
    union all
    select 'owner', 'table', t.name, 'all' from unnest(array['access', 'migration', 'recent_migration']) t (name)
$$;

-- What to grant for a level: ('select', 'table dispatcher.job'), as GRANT and REVOKE take it.
create function dispatcher.access_targets(level text) returns table (privilege text, target text)
stable language sql set search_path = pg_catalog, pg_temp as $$
    with wanted as (
        select r.kind, r.name, r.privilege from dispatcher.access_rights() r
        where r.level = access_targets.level
           or (access_targets.level = 'operate' and r.level in ('enqueue', 'read'))
           or (access_targets.level = 'run' and r.level <> 'owner')
    ), reserved as (
        select r.kind, r.name from dispatcher.access_rights() r where r.level = 'owner'
    ), routine as (
        select p.proname::text as name, 'routine ' || p.oid::regprocedure as target
        from pg_proc p where p.pronamespace = 'dispatcher'::regnamespace
    ), relation as (
        select c.relname::text as name, c.relkind = 'S' as is_sequence, c.oid::regclass::text as target
        from pg_class c where c.relnamespace = 'dispatcher'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'S')
    )
    select w.privilege, f.target from wanted w join routine f on f.name = w.name where w.kind = 'function'
    union
    select w.privilege, 'table ' || t.target from wanted w join relation t on t.name = w.name and not t.is_sequence
    where w.kind = 'table'
    union
    select 'execute', f.target from routine f
    where access_targets.level = 'run' and f.name not in (select r.name from reserved r where r.kind = 'function')
    union
    select case when t.is_sequence then 'usage, select' else 'select, insert, update, delete' end,
           case when t.is_sequence then 'sequence ' else 'table ' end || t.target
    from relation t
    where access_targets.level = 'run' and t.name not in (select r.name from reserved r where r.kind = 'table')
$$;

-- Grants the rights of a level to a role, or takes them.
create function dispatcher.apply_level(role text, level text, give boolean) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
    item record;
begin
    if give then
        execute format('grant usage on schema dispatcher to %I', role);
    end if;
    for item in select t.privilege, t.target from dispatcher.access_targets(level) t loop
        if give then
            execute format('grant %s on %s to %I', item.privilege, item.target, role);
        else
            execute format('revoke %s on %s from %I', item.privilege, item.target, role);
        end if;
    end loop;
end $$;

-- Before any change: the lock of the migrations, for two grants on one function at once fail in PostgreSQL. A role that is gone, or
-- that has lost its right on the schema, is forgotten: a later role of the same name is another one.
create function dispatcher.begin_access() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform pg_advisory_xact_lock(1146310661, 0);
    delete from dispatcher.access a where not exists (
        select from pg_namespace n cross join lateral aclexplode(n.nspacl) g join pg_roles r on r.oid = g.grantee
        where n.nspname = 'dispatcher' and g.privilege_type = 'USAGE' and r.rolname = a.role);
end $$;

create function dispatcher.check_access(role text, level text) returns void
stable language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    if level is null or level not in ('enqueue', 'read', 'operate', 'run') then
        raise exception using errcode = 'invalid_parameter_value', message = format(
            'there is no level %L: the levels are enqueue, read, operate and run', level);
    end if;
    if role is null or not exists (select from pg_roles r where r.rolname = role) then
        raise exception using errcode = 'undefined_object', message = format(
            'there is no role %L: make it first, with create role', role);
    end if;
    if exists (select from pg_namespace n join pg_roles r on r.oid = n.nspowner
               where n.nspname = 'dispatcher' and r.rolname = role) then
        raise exception using errcode = 'invalid_parameter_value', message = format(
            'the role %L owns the schema dispatcher and so has every right', role);
    end if;
end $$;

-- Grants a level to a role, for good. Only the owner of the schema may call it.
create function dispatcher.grant_access(role text, level text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
    perform dispatcher.begin_access();
    perform dispatcher.check_access(role, level);
    insert into dispatcher.access (role, level) values (grant_access.role, grant_access.level) on conflict do nothing;
    perform dispatcher.apply_level(role, level, true);
end $$;

-- Takes a level from a role; what its other levels hold stays.
create function dispatcher.revoke_access(role text, level text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
    perform dispatcher.begin_access();
    perform dispatcher.check_access(role, level);
    delete from dispatcher.access a where a.role = revoke_access.role and a.level = revoke_access.level;
    perform dispatcher.apply_level(role, level, false);
    perform dispatcher.apply_level(a.role, a.level, true) from dispatcher.access a where a.role = revoke_access.role;
    if not found then
        execute format('revoke usage on schema dispatcher from %I', revoke_access.role);
    end if;
end $$;

-- At the end of each migration: what is new is for nobody, and then for whom its level was granted to.
create function dispatcher.apply_access() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
    perform dispatcher.begin_access();
    revoke all on all routines in schema dispatcher from public;
    perform dispatcher.apply_level(a.role, a.level, true) from dispatcher.access a;
end $$;

-- A function in PL/pgSQL looks up the types of its variables once a session, when it is first called: a role that may call it directly
-- could so, from its own search_path, bring types of its own into what later runs with the owner's rights.
do $$
declare
    item record;
begin
    for item in
        select p.oid::regprocedure as signature
        from pg_catalog.pg_proc p join pg_catalog.pg_language l on l.oid = p.prolang
        where p.pronamespace = 'dispatcher'::regnamespace and l.lanname = 'plpgsql'
          and not exists (select from unnest(p.proconfig) s (setting) where s.setting like 'search_path=%')
    loop
        execute format('alter function %s set search_path = pg_catalog, pg_temp', item.signature);
    end loop;
end $$;

-- Until now every role with a right on the schema could enqueue, cancel and retry: it keeps that.
insert into dispatcher.access (role, level)
select distinct r.rolname, 'enqueue'
from pg_catalog.pg_namespace n cross join lateral pg_catalog.aclexplode(n.nspacl) g join pg_catalog.pg_roles r on r.oid = g.grantee
where n.nspname = 'dispatcher' and g.privilege_type = 'USAGE' and r.oid <> n.nspowner;

select dispatcher.apply_access();
