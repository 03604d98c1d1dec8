-- bar_replica: in the rescue's transaction: nobody lives under this id now, and nobody can until it ends.
select pg_try_advisory_xact_lock(dispatcher.liveness_lock(), %(replica)s)
