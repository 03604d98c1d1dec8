-- doze: gives the awake lock back; true where no enqueuer stands between its look and its commit.
select dispatcher.doze(%(lease)s, %(give_back)s)
