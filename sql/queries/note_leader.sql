-- note_leader: the leader is at work, said by the leader of this very term only; for people, nothing relies on it.
update dispatcher.lease l set seen_at = now()
where l.number = %(lease)s and l.holder = %(replica)s and l.term = %(term)s
