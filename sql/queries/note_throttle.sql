-- note_throttle: until when rates hold types back, for people.
insert into dispatcher.throttle as t (type, held_until)
select n.type, now() + make_interval(secs => n.seconds)
from unnest(%(types)s::text[], %(seconds)s::double precision[]) as n (type, seconds)
on conflict (type) do update set held_until = excluded.held_until
