-- Ended jobs: found by a filter, counted, run again, removed. Each is a walk from the newest to the oldest, in steps: so 100,000
-- jobs can be dealt with in many short transactions, and what ends while it goes on is not met twice.

create type dispatcher.ended_filter as (
    type text, tenant text, states text[], kind text, message text, since timestamptz, until timestamptz, most bigint);

-- A time, or how long ago.
create function dispatcher.parse_filter_time(name text, value jsonb, out result timestamptz)
stable language plpgsql as $$
declare
    given text := value #>> '{}';
    ago interval;
begin
    if jsonb_typeof(value) = 'number' then
        ago := make_interval(secs => given::double precision);
    elsif jsonb_typeof(value) = 'string' and dispatcher.has_zone(given) then
        result := given::timestamptz;
    elsif jsonb_typeof(value) = 'string' and given !~* '\d\s*[-:/]\s*\d' then  -- a time without its zone is no duration
        ago := given::interval;
    end if;
    -- "7 days ago" is minus seven days: taken from now it would be a time to come, and a purge until then one of everything.
    if ago >= interval '0' then
        result := now() - ago;
    end if;
    -- As with run_at.
    if (result between '0002-01-01' and now() + interval '100 years') is not true then
        raise datetime_field_overflow;
    end if;
exception when invalid_datetime_format or datetime_field_overflow or interval_field_overflow
               or numeric_value_out_of_range or invalid_time_zone_displacement_value then
    raise exception using errcode = 'DJ004', message = format(
        'filter %L must be a time with its zone, such as "2030-01-31T12:00:00Z", or how long ago, such as "2h"; it is %s',
        name, left(value::text, 100));
end $$;

-- What retries or removes demands that the filter says something: one whose values were all missing must not mean every job.
create function dispatcher.parse_filter(filter jsonb, allowed text[], demanding boolean) returns dispatcher.ended_filter
stable language plpgsql as $$
declare
    parsed dispatcher.ended_filter;
    name text;
    value jsonb;
    number numeric;
    says boolean := not demanding;
begin
    if filter is null or jsonb_typeof(filter) <> 'object' then
        raise exception using errcode = 'DJ004', message = 'the filter must be a JSON object';
    end if;
    parsed.states := array['failed'];
    for name, value in select e.key, e.value from jsonb_each(filter) e loop
        continue when value = 'null';
        case name
        when 'type', 'tenant', 'kind', 'message' then
            if jsonb_typeof(value) <> 'string' or length(value #>> '{}') not between 1 and 200 then
                raise exception using errcode = 'DJ004', message = format(
                    'filter %L must be a text of 1 to 200 characters; it is %s', name, left(value::text, 100));
            end if;
            case name
            when 'type' then parsed.type := value #>> '{}';
            when 'tenant' then parsed.tenant := value #>> '{}';
            when 'kind' then parsed.kind := value #>> '{}';
            else parsed.message := value #>> '{}';
            end case;
            says := true;
        when 'state' then
            parsed.states := case jsonb_typeof(value)
                when 'string' then array[value #>> '{}']
                when 'array' then array(select s.state #>> '{}' from jsonb_array_elements(value) as s (state)) end;
            if (parsed.states <@ allowed and parsed.states <> '{}') is not true then
                raise exception using errcode = 'DJ004', message = format(
                    'filter ''state'' must be one or several of %s; it is %s',
                    array_to_string(allowed, ', '), left(value::text, 100));
            end if;
            says := true;
        when 'since' then
            parsed.since := dispatcher.parse_filter_time(name, value);
            says := true;
        when 'until' then
            parsed.until := dispatcher.parse_filter_time(name, value);
            says := true;
        when 'limit' then
            number := case when jsonb_typeof(value) = 'number' then value::numeric end;
            if (number = trunc(number) and number between 1 and 9223372036854775807) is not true then
                raise exception using errcode = 'DJ004', message = format(
                    'filter ''limit'' must be a whole number from 1; it is %s', left(value::text, 100));
            end if;
            parsed.most := number;
        when 'all' then
            if jsonb_typeof(value) <> 'boolean' then
                raise exception using errcode = 'DJ004', message = format(
                    'filter ''all'' must be true or false; it is %s', left(value::text, 100));
            end if;
            says := says or value::boolean;
        else
            raise exception using errcode = 'DJ004', message = format(
                'unknown filter %L; known filters: type, tenant, state, kind, message, since, until, limit, all', name);
        end case;
    end loop;
    if parsed.since >= parsed.until then
        raise exception using errcode = 'DJ004', message = 'filter ''since'' must be before ''until''';
    end if;
    if not says then
        raise exception using errcode = 'DJ004', message =
            'the filter is empty: give type, tenant, state, kind, message, since or until, or "all": true for every failed job';
    end if;
    return parsed;
end $$;

-- The newest jobs before an id that match, at most so many, and the id to go on before; null once there are no more. Looks at so
-- many rows at most. States may be null for any, and a time is of the job's end or, before that, of its creation: lists of jobs
-- use it as well. Failed, partial and canceled jobs have an index of their own, others are found by a walk over all jobs. Planner
-- settings are fixed, so that the way through the index never depends on statistics, nor on the session.
create function dispatcher.match_jobs(
    f dispatcher.ended_filter, before bigint, most bigint, examine bigint, out ids bigint[], out next bigint)
stable language plpgsql
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set jit = off as $$
begin
    if f.states <@ array['failed', 'partial', 'canceled'] then
        ids := array(
            select w.id from (
                select j.id, j.type, j.tenant, j.state, j.finished_at, j.errors from dispatcher.job j
                where j.listed = 'troubled' and j.id < before order by j.id desc limit examine) w
            where w.state = any(f.states)
              and (f.type is null or w.type = f.type) and (f.tenant is null or w.tenant = f.tenant)
              and (f.since is null or w.finished_at >= f.since) and (f.until is null or w.finished_at < f.until)
              and (f.kind is null or w.errors -> -1 ->> 'kind' = f.kind)
              and (f.message is null or strpos(w.errors -> -1 ->> 'message', f.message) > 0)
            order by w.id desc limit most);
        if cardinality(ids) < most then  -- it saw all that it may: where did that end?
            select case when count(*) = examine then min(w.id) end into next
            from (select j.id from dispatcher.job j
                  where j.listed = 'troubled' and j.id < before order by j.id desc limit examine) w;
        end if;
    else
        ids := array(
            select w.id from (
                select j.id, j.type, j.tenant, j.state, j.created_at, j.finished_at, j.errors from dispatcher.job j
                where j.id < before order by j.id desc limit examine) w
            where (f.states is null or w.state = any(f.states))
              and (f.type is null or w.type = f.type) and (f.tenant is null or w.tenant = f.tenant)
              and (f.since is null or coalesce(w.finished_at, w.created_at) >= f.since)
              and (f.until is null or coalesce(w.finished_at, w.created_at) < f.until)
              and (f.kind is null or w.errors -> -1 ->> 'kind' = f.kind)
              and (f.message is null or strpos(w.errors -> -1 ->> 'message', f.message) > 0)
            order by w.id desc limit most);
        if cardinality(ids) < most then
            select case when count(*) = examine then min(w.id) end into next
            from (select j.id from dispatcher.job j where j.id < before order by j.id desc limit examine) w;
        end if;
    end if;
    if cardinality(ids) = most then
        next := ids[most];
    end if;
end $$;

-- How many ended jobs match: what retry_where or purge would deal with.
create function dispatcher.count_ended(filter jsonb default '{}') returns bigint
stable language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    f dispatcher.ended_filter := dispatcher.parse_filter(
        filter, array['failed', 'partial', 'canceled', 'succeeded'], demanding => false);
    before bigint := 9223372036854775807;
    total bigint := 0;
    more bigint;
begin
    while before is not null and total < coalesce(f.most, total + 1) loop
        select cardinality(m.ids), m.next into more, before from dispatcher.match_jobs(f, before, 20000, 20000) m;
        total := total + more;
    end loop;
    return least(total, f.most);
end $$;

-- Runs these jobs again at once, all of one batch or of none, and the batch: one by one each would write the batch's row anew, and
-- in one transaction every look at that row meets all its versions. What somebody holds locked is passed by; answers how many it was.
create function dispatcher.retry_siblings(batch_id bigint, ids bigint[], states text[]) returns bigint
language plpgsql as $$
declare
    locked bigint[];
    done record;
begin
    if exists (select from dispatcher.batch b where b.job_id = batch_id) then
        perform from dispatcher.batch b where b.job_id = batch_id for no key update skip locked;
        if not found then
            return 0;
        end if;
    end if;
    locked := array(select j.id from dispatcher.job j
                    where j.id = any(ids) and j.state = any(states) order by j.id for no key update skip locked);
    select r.revived, r.ended into done from dispatcher.revive(locked) r;
    if done.ended then
        perform dispatcher.reopen_batch(batch_id);
    end if;
    return coalesce(cardinality(done.revived), 0);
end $$;

-- One step of retry_where: from `before` on, at most `most` jobs. Each runs again just as by dispatcher.retry, a batch also by a job
-- of it that does. Passed by and counted
-- as skipped: what somebody holds locked, what has changed meanwhile, and whose unique key another unfinished job has. Locks that are
-- not foreseen, such as those of a key that is being enqueued, of a batch's job or of one that comes after, are waited for so
-- shortly that no circle comes about: of two who wait for each other PostgreSQL would end any.
create function dispatcher.retry_step(
    filter jsonb, before bigint, most bigint, out retried bigint, out skipped bigint, out next bigint)
language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '20ms' as $$
declare
    f dispatcher.ended_filter := dispatcher.parse_filter(filter, array['failed', 'partial', 'canceled'], demanding => true);
    matched bigint[];
    siblings record;
    again bigint;
    alone bigint[];
    one bigint;
    parent bigint;
begin
    retried := 0;
    skipped := 0;
    select m.ids, m.next into matched, next from dispatcher.match_jobs(f, before, least(most, 1000), 20000) m;
    alone := matched;
    for siblings in
        select j.parent_id, array_agg(j.id) as ids from dispatcher.job j
        where j.id = any(matched) and j.type <> 'batch' and j.unique_key is null group by j.parent_id having count(*) > 1
    loop
        begin
            again := dispatcher.retry_siblings(siblings.parent_id, siblings.ids, f.states);
            retried := retried + again;
            skipped := skipped + cardinality(siblings.ids) - again;
            alone := array(select a.id from unnest(alone) with ordinality as a (id, position)
                           where a.id <> all(siblings.ids) order by a.position);
        exception when sqlstate 'DJ007' or lock_not_available or deadlock_detected then null;  -- for one of them: so one by one
        end;
    end loop;
    foreach one in array alone loop
        if exists (select from dispatcher.batch b join dispatcher.job j on j.id = b.job_id where b.job_id = one and j.state = 'running') then
            retried := retried + 1;
            continue;
        end if;
        begin
            -- dispatcher.retry waits for locks, the batch's first: so whoever has one of them is found out before, in that order.
            select j.parent_id into parent from dispatcher.job j where j.id = one;
            if exists (select from dispatcher.batch b where b.job_id in (one, parent)) then
                perform from dispatcher.batch b where b.job_id in (one, parent) for no key update skip locked;
                if not found then
                    skipped := skipped + 1;
                    continue;
                end if;
            end if;
            perform from dispatcher.job j where j.id = one and j.state = any(f.states) for no key update skip locked;
            if not found then
                skipped := skipped + 1;
                continue;
            end if;
            perform dispatcher.retry(one);
            retried := retried + 1;
        exception when sqlstate 'DJ005' or sqlstate 'DJ006' or sqlstate 'DJ007' or lock_not_available or deadlock_detected then
            skipped := skipped + 1;
        end;
    end loop;
end $$;

-- Runs every job again that matches, the newest first, all in the caller's transaction.
create function dispatcher.retry_where(filter jsonb, out retried bigint, out skipped bigint)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    most bigint := (dispatcher.parse_filter(filter, array['failed', 'partial', 'canceled'], demanding => true)).most;
    before bigint := 9223372036854775807;
    step record;
begin
    retried := 0;
    skipped := 0;
    most := coalesce(most, 9223372036854775807);
    while before is not null and retried < most loop
        select s.retried, s.skipped, s.next into step from dispatcher.retry_step(filter, before, most - retried) s;
        retried := retried + step.retried;
        skipped := skipped + step.skipped;
        before := step.next;
    end loop;
end $$;

-- One step of purge: from `before` on, at most `most` jobs. Passed by and counted as skipped: what somebody holds locked, children of an
-- open batch, and jobs after which an unfinished one runs, for that one may read their results.
create function dispatcher.purge_step(
    filter jsonb, before bigint, most bigint, out purged bigint, out skipped bigint, out next bigint)
language plpgsql security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    f dispatcher.ended_filter := dispatcher.parse_filter(
        filter, array['failed', 'partial', 'canceled', 'succeeded'], demanding => true);
    ids bigint[];
    batches bigint[];
    locked bigint[];
begin
    select m.ids, m.next into ids, next from dispatcher.match_jobs(f, before, least(most, 1000), 20000) m;
    -- A batch's row goes with its job, and whoever needs both locks the row first.
    batches := array(select b.job_id from dispatcher.batch b where b.job_id = any(ids) for update skip locked);
    locked := array(
        select j.id from dispatcher.job j
        where j.id = any(ids) and j.state = any(f.states) and (j.type <> 'batch' or j.id = any(batches)) for update skip locked);
    -- A statement of its own: it sees who was enqueued after a job up to the instant in which that was locked.
    delete from dispatcher.job j
    where j.id = any(locked)
      and not exists (select from dispatcher.batch b where b.job_id = j.parent_id and b.ended_at is null)
      and not exists (select from dispatcher.dependency d join dispatcher.job w on w.id = d.job_id
                      where d.after_id = j.id and w.state in ('scheduled', 'blocked', 'pending', 'running'));
    get diagnostics purged = row_count;
    skipped := cardinality(ids) - purged;
end $$;

-- Removes every ended job that matches, all in the caller's transaction.
create function dispatcher.purge(filter jsonb, out purged bigint, out skipped bigint)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
    most bigint := (dispatcher.parse_filter(
        filter, array['failed', 'partial', 'canceled', 'succeeded'], demanding => true)).most;
    before bigint := 9223372036854775807;
    step record;
begin
    purged := 0;
    skipped := 0;
    most := coalesce(most, 9223372036854775807);
    while before is not null and purged < most loop
        select s.purged, s.skipped, s.next into step from dispatcher.purge_step(filter, before, most - purged) s;
        purged := purged + step.purged;
        skipped := skipped + step.skipped;
        before := step.next;
    end loop;
end $$;

revoke all on function dispatcher.parse_filter_time(text, jsonb), dispatcher.parse_filter(jsonb, text[], boolean),
    dispatcher.match_jobs(dispatcher.ended_filter, bigint, bigint, bigint), dispatcher.count_ended(jsonb),
    dispatcher.retry_siblings(bigint, bigint[], text[]), dispatcher.retry_step(jsonb, bigint, bigint), dispatcher.retry_where(jsonb),
    dispatcher.purge_step(jsonb, bigint, bigint), dispatcher.purge(jsonb) from public;
