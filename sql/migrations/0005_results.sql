-- Results in a store, and the errors of an attempt that is told of twice.

-- Ends the running attempt as succeeded, in the caller's own transaction, with the URL of what it stored. Without defaults, so
-- that no call with fewer arguments becomes ambiguous. The first function says whether the attempt is still the running one, and
-- raises where it is not.
create function dispatcher.complete(id bigint, attempt integer, result jsonb, result_url text) returns void
language plpgsql as $$
#variable_conflict use_column
begin
    perform dispatcher.complete(complete.id, complete.attempt, complete.result);
    if complete.result_url is not null then
        update dispatcher.job set result_url = complete.result_url where id = complete.id and attempt = complete.attempt;
    end if;
end $$;

-- True where an attempt is an owner's; raises otherwise, as where it is no longer the running one. A server that was promoted without
-- knowing of a claim gives its number out again, to another.
create function dispatcher.is_owned(id bigint, attempt integer, owner bigint) returns boolean
language plpgsql as $$
#variable_conflict use_column
begin
    if not exists (select from dispatcher.job
                   where id = is_owned.id and attempt = is_owned.attempt and owner = is_owned.owner) then
        perform dispatcher.check_still_running(id, attempt, null);
    end if;
    return true;
end $$;

-- A job's errors with those of one of its attempts. What was noted of that attempt while it ran, past its timeout, gives way: its
-- end tells it again.
create function dispatcher.add_errors(errors jsonb, attempt integer, added jsonb) returns jsonb
stable language sql set search_path = pg_catalog, pg_temp as $$
    select coalesce((select jsonb_agg(before.entry order by before.place)
                     from jsonb_array_elements(add_errors.errors) with ordinality before (entry, place)
                     where before.entry -> 'attempt' is distinct from to_jsonb(add_errors.attempt)), '[]')
        || coalesce((select jsonb_agg(after.entry || jsonb_build_object('at', now(), 'attempt', add_errors.attempt)
                                      order by after.place)
                     from jsonb_array_elements(add_errors.added) with ordinality after (entry, place)), '[]')
$$;

revoke all on function dispatcher.complete(bigint, integer, jsonb, text), dispatcher.is_owned(bigint, integer, bigint),
    dispatcher.add_errors(jsonb, integer, jsonb) from public;
