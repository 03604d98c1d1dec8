-- notify: a word on a channel.
select pg_notify(%(channel)s, %(payload)s)
