-- guard_rescue: in the rescue's transaction: nobody lives under this id now, nor came and went since it was observed.
select pg_try_advisory_xact_lock(dispatcher.liveness_lock(), %(replica)s)
   and coalesce((select r.incarnation from dispatcher.replica r where r.id = %(replica)s), 0) = %(incarnation)s
