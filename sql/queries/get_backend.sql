-- get_backend: the process that answers; a pooler in between names another one when a connection is made.
select pg_backend_pid()
