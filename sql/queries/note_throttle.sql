-- note_throttle: until when rates hold types back, for people; a row that somebody holds locked stays as it is.
with held as materialized (
    select n.type, now() + make_interval(secs => n.seconds) as held_until
    from unnest(%(types)s::text[], %(seconds)s::double precision[]) as n (type, seconds)
), free as materialized (
    select t.type from dispatcher.throttle t where t.type = any(%(types)s::text[]) for no key update skip locked
), noted as (
    update dispatcher.throttle t set held_until = h.held_until
    from held h join free f on f.type = h.type
    where t.type = h.type
)
insert into dispatcher.throttle (type, held_until)
select h.type, h.held_until from held h
where not exists (select from dispatcher.throttle t where t.type = h.type)
on conflict (type) do nothing
