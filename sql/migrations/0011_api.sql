-- The HTTP API: who may use it, answers kept for requests that are sent again, and a record of what was administered through it.

-- A token is shown once, to whom it was made for; stored is its SHA-256, which is enough for 32 random bytes.
create table dispatcher.token (
    id integer generated always as identity primary key,
    name text not null,
    hash bytea not null unique,
    tenant text collate "C",                           -- null: all tenants
    role text not null,
    created_at timestamptz not null default now(),
    created_by text not null default session_user,
    expires_at timestamptz,                            -- null: never
    revoked_at timestamptz,
    used_at timestamptz                                -- to the minute
);

create view dispatcher.tokens as
select t.id, t.name, t.tenant, t.role, t.created_at, t.created_by, t.expires_at, t.revoked_at, t.used_at from dispatcher.token t;

-- The first answer to a request that came with an Idempotency-Key, written in the transaction that did what it asked for.
create table dispatcher.answer (
    tenant text collate "C" not null,                  -- of the token; '' for those of all tenants
    key text collate "C" not null,
    digest bytea not null,                             -- of method, path and body
    status smallint,
    headers jsonb,
    body text,
    created_at timestamptz not null default now(),
    primary key (tenant, key)
);
create index answer_age on dispatcher.answer (created_at);

create table dispatcher.audit (
    id bigint generated always as identity primary key,
    at timestamptz not null default now(),
    token_id integer not null,
    token_name text not null,
    tenant text,                                       -- of the token
    action text not null,
    target text not null,
    details jsonb not null,
    address text                                       -- of the client
);

create function dispatcher.create_token(name text, tenant text, role text, hash bytea, lifetime_s double precision) returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    made integer;
begin
    if length(name) not between 1 and 200 or length(tenant) not between 1 and 200 or role not in ('read', 'write', 'admin')
       or length(hash) <> 32 or not lifetime_s > 0 then
        raise exception using errcode = 'DJ004', message =
            'a token needs a name and a tenant of 1 to 200 characters, a role (read, write or admin) and a lifetime of more than zero';
    end if;
    insert into dispatcher.token (name, hash, tenant, role, expires_at)
    values (create_token.name, create_token.hash, create_token.tenant, create_token.role, now() + make_interval(secs => lifetime_s))
    returning id into made;
    return made;
end $$;

-- The token with this hash, also one that is of no use any more: state says why.
create function dispatcher.find_token(
    hash bytea, out id integer, out name text, out tenant text, out role text, out state text, out expires_in_s double precision)
returns setof record
stable language sql security definer set search_path = pg_catalog, pg_temp as $$
    select t.id, t.name, t.tenant, t.role,
           case when t.revoked_at is not null then 'revoked' when t.expires_at <= now() then 'expired' else 'valid' end,
           extract(epoch from t.expires_at - now())::double precision
    from dispatcher.token t where t.hash = find_token.hash $$;

-- False where it was revoked before; null where there is none.
create function dispatcher.revoke_token(id integer) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
    update dispatcher.token set revoked_at = now() where id = revoke_token.id and revoked_at is null;
    if found then
        return true;
    end if;
    return (select false from dispatcher.token t where t.id = revoke_token.id);
end $$;

create function dispatcher.note_token_use(ids integer[]) returns void
language sql security definer set search_path = pg_catalog, pg_temp as $$
    update dispatcher.token t set used_at = now()
    where t.id = any(ids) and (t.used_at is null or t.used_at < now() - interval '50 s') $$;

-- Takes the key for this transaction, or answers what was answered first; status is null where the key is new. `busy` where another
-- transaction has taken it and not ended: waiting for it would hold a connection. `same` is false where the key came with another
-- request before.
create function dispatcher.take_key(
    tenant text, key text, digest bytea, out busy boolean, out same boolean, out status smallint, out headers jsonb, out body text)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
    busy := not pg_try_advisory_xact_lock(hashtextextended(length(tenant) || ':' || tenant || ':' || key, 1146310665));
    if busy then
        return;
    end if;
    insert into dispatcher.answer as a (tenant, key, digest) values (take_key.tenant, take_key.key, take_key.digest)
    on conflict (tenant, key) do update
    set digest = excluded.digest, status = null, headers = null, body = null, created_at = now()
    where a.created_at < now() - interval '1 day';
    if found then
        same := true;
        return;
    end if;
    select a.digest = take_key.digest, a.status, a.headers, a.body into same, status, headers, body
    from dispatcher.answer a where a.tenant = take_key.tenant and a.key = take_key.key;
end $$;

create function dispatcher.keep_answer(tenant text, key text, status smallint, headers jsonb, body text) returns void
language sql security definer set search_path = pg_catalog, pg_temp as $$
    update dispatcher.answer a set status = keep_answer.status, headers = keep_answer.headers, body = keep_answer.body
    where a.tenant = keep_answer.tenant and a.key = keep_answer.key $$;

create function dispatcher.note_audit(
    token_id integer, token_name text, tenant text, action text, target text, details jsonb, address text) returns void
language sql security definer set search_path = pg_catalog, pg_temp as $$
    insert into dispatcher.audit (token_id, token_name, tenant, action, target, details, address)
    values (token_id, token_name, tenant, action, target, details, address) $$;

-- Jobs of many requests in one transaction, in their order, and the answer to each: its status, headers and body. All or none, so
-- that whose job is wrong is found by itself. One with a key (of its tenant) that was answered before gets that answer; status is 0
-- where another transaction has the key, and 409 where it came with another request. A statement cannot see the rows that its own
-- functions insert: hence a function to look at them.
create function dispatcher.answer_enqueues(
    types text[], payloads jsonb[], options jsonb[], tenants text[], keys text[], digests bytea[])
returns table (status smallint, replayed boolean, headers jsonb, body text)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    taken record;
    made record;
begin
    for place in 1 .. cardinality(types) loop
        replayed := false;
        headers := '{}';
        body := '';
        if keys[place] is not null then
            select * into taken from dispatcher.take_key(tenants[place], keys[place], digests[place]);
            if taken.busy or not taken.same or taken.status is not null then
                status := case when taken.busy then 0 when not taken.same then 409 else taken.status end;
                if status not in (0, 409) then
                    replayed := true;
                    headers := taken.headers;
                    body := taken.body;
                end if;
                return next;
                continue;
            end if;
        end if;
        select e.id, e.created into made from dispatcher.enqueue_unique(types[place], payloads[place], options[place]) e;
        status := case when made.created then 202 else 200 end;
        headers := jsonb_build_object('Location', '/jobs/' || made.id);
        select json_build_object(
            'id', j.id, 'state', j.state, 'created', made.created,
            'created_at', to_char(j.created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))::text
        into body from dispatcher.job j where j.id = made.id;
        if keys[place] is not null then
            perform dispatcher.keep_answer(tenants[place], keys[place], status, headers, body);
        end if;
        return next;
    end loop;
end $$;
