-- limit_lock_wait: how many seconds lock_tables waits, all in all; until the end of the transaction.
select set_config('dispatcher.lock_wait_s', %(wait_s)s::text, true)
