-- list_disowned: of these attempts, the ones that this replica's rows do not name: their claim was lost with the server's former
-- primary, or the job was taken away. One that has ended keeps its owner.
select o.id, o.attempt from unnest(%(ids)s::bigint[], %(attempts)s::integer[]) as o (id, attempt)
where not exists (
    select from dispatcher.job j where j.id = any(array[o.id]) and j.attempt = o.attempt and j.owner = %(owner)s)
