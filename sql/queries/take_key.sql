-- take_key: for this transaction; or the answer that was given first.
select busy, same, status, headers, body from dispatcher.take_key(%(tenant)s, %(key)s, %(digest)s)
