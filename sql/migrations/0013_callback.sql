-- Answers that come later: a job hands a token to whoever works for it, lets its thread go, and ends by what is answered with it.

create table dispatcher.callback (
    job_id bigint primary key,
    token_hashes bytea[] not null,                     -- SHA-256: one of each try that may have been heard
    accepted_at timestamptz,                           -- somebody works on it; from here its time is counted
    answer jsonb,                                      -- the first one, {status, result} or {status, message, retry}
    answered_at timestamptz,
    taken_at timestamptz,                              -- the job has ended by it, or by the lack of it; a later try begins anew
    created_at timestamptz not null default now()
);

create function dispatcher.forget_callbacks() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp set enable_seqscan = off as $$
begin
    -- One that somebody is about to answer stays, and is nobody's.
    delete from dispatcher.callback c where c.job_id = any(array(
        select k.job_id from gone g join dispatcher.callback k on k.job_id = any(array[g.id]) for update of k skip locked));
    return null;
end $$;

create trigger forget_callbacks after delete on dispatcher.job referencing old table as gone
for each statement execute function dispatcher.forget_callbacks();

-- Answers for a job, by the token that it gave out; the state that it leaves the job in. The first answer counts: the same one again
-- is no error. A job that waits runs at once; it keeps its failures, which dispatcher.retry would forget, or a worker that always
-- fails would be asked for ever. One that runs looks for itself, and so does one that may still run in a replica that ends, in its
-- next try. A hash is compared, so that the time it takes tells nothing.
create function dispatcher.answer(id bigint, token text, answer jsonb) returns text
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    waiting record;
    left_in text;
    reason text;
    known constant text[] := array['status', 'result', 'message', 'retry'];
begin
    if answer is null or jsonb_typeof(answer) <> 'object' or exists (select from jsonb_object_keys(answer) k where k <> all(known))
       or coalesce(not (case answer ->> 'status'
            when 'succeeded' then not answer ?| array['message', 'retry']
            when 'failed' then not answer ? 'result' and jsonb_typeof(answer -> 'message') = 'string'
                and coalesce(jsonb_typeof(answer -> 'retry'), 'boolean') = 'boolean' end), true) then
        raise exception using errcode = 'DJ004', message =
            'an answer is {"status": "succeeded", "result": ...} or {"status": "failed", "message": "...", "retry": false}';
    end if;
    if octet_length(answer::text) > 1048576 then
        raise exception using errcode = 'DJ003', message = format(
            'the answer has %s bytes; the limit is 1048576: send where the result is', octet_length(answer::text));
    end if;
    reason := dispatcher.unreadable(answer, octet_length(answer::text));
    if reason is not null then
        raise exception using errcode = 'DJ004', message = 'the answer ' || reason;
    end if;
    select c.answer, c.answered_at into waiting from dispatcher.callback c
    where c.job_id = answer.id and sha256(convert_to(answer.token, 'UTF8')) = any(c.token_hashes) for no key update;
    if not found then
        raise exception using errcode = 'DJ005', message = format('no job %s waits for an answer with this token', answer.id);
    end if;
    select j.state into left_in from dispatcher.job j where j.id = answer.id;
    if waiting.answered_at is not null then
        if waiting.answer <> answer.answer then
            raise exception using errcode = 'DJ006', message = format('job %s was answered otherwise before', answer.id);
        end if;
        return left_in;
    end if;
    if left_in in ('succeeded', 'partial', 'failed', 'canceled') then
        raise exception using errcode = 'DJ006', message = format('job %s has ended, it is %s: no answer counts any more', answer.id, left_in);
    end if;
    update dispatcher.callback set answer = answer.answer, answered_at = now() where job_id = answer.id;
    update dispatcher.job set state = 'pending', run_at = now()
    where id = answer.id and state = 'scheduled' and not dispatcher.may_still_run(state, owner, run_at);
    return case when found then 'pending' else left_in end;
end $$;
