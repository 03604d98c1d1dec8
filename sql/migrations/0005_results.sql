-- Results in a store.

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

revoke all on function dispatcher.complete(bigint, integer, jsonb, text) from public;
