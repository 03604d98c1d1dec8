-- guard_rescue: in the rescue's transaction, once it has the liveness lock and so in a statement of its own, whose snapshot
-- is younger than the lock: nobody came and went under this id since it was observed.
select coalesce((select r.incarnation from dispatcher.replica r where r.id = %(replica)s), 0) = %(incarnation)s
