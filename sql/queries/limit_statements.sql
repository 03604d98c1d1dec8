-- limit_statements: no statement of this session takes longer, nor waits longer for a lock.
select set_config('statement_timeout', %(milliseconds)s, false), set_config('lock_timeout', %(milliseconds)s, false)
