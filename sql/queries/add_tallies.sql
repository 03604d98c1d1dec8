-- add_tallies: adds what a replica has tallied to the running minute and hour. A write that its row knows already adds nothing. All
-- write in one order, so that two replicas never wait for each other in a circle.
with told as (
    update dispatcher.replica r set told = %(number)s::bigint where r.id = %(replica)s and r.told < %(number)s::bigint returning r.id
)
insert into dispatcher.tally as t (grain, at, type, tenant, succeeded, partial, failed, canceled, retried, ran, waited)
select g.grain, date_trunc(g.grain, now(), 'UTC'), n.type, n.tenant, n.succeeded, n.partial, n.failed, n.canceled, n.retried,
       n.ran::bigint[], n.waited::bigint[]
from unnest(%(types)s::text[], %(tenants)s::text[], %(succeeded)s::bigint[], %(partial)s::bigint[], %(failed)s::bigint[],
            %(canceled)s::bigint[], %(retried)s::bigint[], %(ran)s::text[], %(waited)s::text[])
    as n (type, tenant, succeeded, partial, failed, canceled, retried, ran, waited)
cross join (values ('minute'), ('hour')) as g (grain)
where exists (select from told)
order by g.grain, n.tenant, n.type
on conflict (grain, at, tenant, type) do update
set succeeded = t.succeeded + excluded.succeeded, partial = t.partial + excluded.partial, failed = t.failed + excluded.failed,
    canceled = t.canceled + excluded.canceled, retried = t.retried + excluded.retried,
    ran = dispatcher.add_up(t.ran, excluded.ran), waited = dispatcher.add_up(t.waited, excluded.waited)
