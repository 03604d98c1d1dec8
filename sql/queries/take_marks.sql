-- take_marks: the oldest marks behind (after), past the index entries of those taken before; they are gone once this transaction commits.
delete from dispatcher.follow_up f
using (select m.id from dispatcher.follow_up m where m.id > %(after)s order by m.id limit %(batch)s for update skip locked) taken
where f.id = taken.id
returning f.id, f.job_id, f.parent_id, f.became
