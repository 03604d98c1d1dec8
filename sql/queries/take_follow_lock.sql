-- take_follow_lock: for this transaction, false where another replica, a leader before us, works marks off right now.
select pg_try_advisory_xact_lock(dispatcher.follow_lock(), 0)
