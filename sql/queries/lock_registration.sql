-- lock_registration: until the end of the transaction no other replica compares its types or registers.
select pg_advisory_xact_lock(dispatcher.register_lock(), 0)
