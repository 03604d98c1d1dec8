-- note_bounds: what the leader goes by, for people; only the leader's own row.
update dispatcher.lease l set max_running = %(max_running)s, threads = %(threads)s
where l.number = %(lease)s and l.holder = %(replica)s and (l.max_running, l.threads) is distinct from (%(max_running)s::integer, %(threads)s::integer)
