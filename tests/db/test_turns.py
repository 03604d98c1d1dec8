"""What the heart of a leader sees to in its turns, beside claims."""

from __future__ import annotations

from contextlib import closing

from dispatcher.db import Connection
from dispatcher.queries import claims
from dispatcher.queries.claims import Lane, Take
from tests.db.beating import Beating
from tests.db.contenders import contender, register
from tests.db.leading import LIMITED
from tests.db.running import enqueue, open_transaction, publish, state


def test_jobs_whose_claim_was_not_answered_are_given_back_and_count_against_the_limit_until_then(
    dsn: str, conn: Connection
) -> None:
    """Their rows say that they run here, and one is locked by somebody."""
    publish(conn, LIMITED)
    replica = register(conn)
    first = enqueue(conn, "limited")
    assert claims.claim_jobs(conn, [Take(Lane("limited", ""), 1)], owner=replica, term=1)
    more = [enqueue(conn, "limited") for _ in range(3)]
    with contender(dsn, replica) as lease, closing(Beating(conn, lease, replica)) as beating:
        with open_transaction(dsn, f"select from dispatcher.job where id = {first} for update"):
            beating.lead()
            beating.until(lambda: len(beating.taken()) == 2)
            for _ in range(5):
                beating.heart.step()
            assert beating.taken() == more[:2]
            assert state(conn, first) == "running"
        beating.until(lambda: len(beating.taken()) == 3)
        assert beating.taken() == [*more[:2], first]  # it was enqueued before the third


def test_cancel_that_nobody_heard_of_is_found_by_the_next_beat(dsn: str, conn: Connection) -> None:
    publish(conn, LIMITED)
    replica = register(conn)
    id, other = enqueue(conn, "limited"), enqueue(conn, "limited")
    with contender(dsn, replica) as lease, closing(Beating(conn, lease, replica)) as beating:
        beating.lead()
        beating.until(lambda: beating.taken() == [id, other])
        beating.leading.pool.execute()
        conn.execute("select dispatcher.cancel(%s)", [id])  # nobody listens here
        lease._last_beat = float("-inf")
        beating.heart.step()
        assert beating.canceled == [id]


def test_fence_is_armed_before_a_claimed_job_is_handed_over(dsn: str, conn: Connection) -> None:
    publish(conn, LIMITED)
    replica = register(conn)
    id = enqueue(conn, "limited")
    with contender(dsn, replica) as lease, closing(Beating(conn, lease, replica)) as beating:
        beating.lead()
        beating.until(beating.taken)
        assert beating.leading.armed == [[]]
        assert beating.taken() == [id]
