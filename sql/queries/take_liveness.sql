-- take_liveness: null where another session has the lock (an earlier one of this replica, or a rescue under way).
select pg_try_advisory_lock(dispatcher.liveness_lock(), %(replica)s)
