-- put_marks: what could not be done, as somebody holds a row locked, is to be done later.
insert into dispatcher.follow_up (job_id, parent_id, became)
select m.job_id, m.parent_id, m.became
from unnest(%(job_ids)s::bigint[], %(parent_ids)s::bigint[], %(became)s::text[]) as m (job_id, parent_id, became)
