-- stay_awake: takes the awake lock; refused while an enqueuer that found it free has yet to commit.
select pg_try_advisory_lock(dispatcher.awake_lock(), %(lease)s)
