-- take_marks: the oldest marks behind (after), past the index entries of those taken before; they are gone once this transaction
-- commits. An array, not a join: the table is believed to be empty, and a plan for that would compare each mark with each.
delete from dispatcher.follow_up f
where f.id = any(array(
    select m.id from dispatcher.follow_up m where m.id > %(after)s order by m.id limit %(batch)s for update skip locked))
returning f.id, f.job_id, f.parent_id, f.became
