-- resign_lease: gives one level of the lock back; the caller repeats it until false, for session locks stack.
select pg_advisory_unlock(dispatcher.lease_lock(), %(lease)s)
