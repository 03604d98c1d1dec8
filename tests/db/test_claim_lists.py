"""Claims lists: a running job whose owner has vanished is found by them alone, so they outlive every doubt."""

from __future__ import annotations

import psycopg
import pytest
from dispatcher.sql import statement

from dispatcher.db import Connection
from dispatcher.queries import claims, outcomes
from dispatcher.services.completer import DROP_CLAIMS
from tests.db.leading import Leading
from tests.db.running import (
    OWNER,
    Settling,
    claim,
    enqueue,
    execution,
    open_transaction,
    session,
    value,
)

LOCKED = "lock table dispatcher.claim in share mode"


def lists(conn: Connection) -> int:
    """How many there are."""
    return int(value(conn, "select count(*) from dispatcher.claim"))


def orphans(conn: Connection, owner: int = OWNER) -> list[int]:
    """What a take-over would find."""
    return [row[0] for row in conn.execute(statement("list_orphans"), {"owner": owner})]


def test_list_of_a_job_that_still_runs_stays_whatever_its_owner_believes(conn: Connection, lease: Connection) -> None:
    ended, runs = enqueue(conn), enqueue(conn)
    number = claim(lease)[0].claim
    conn.execute("update dispatcher.job set state = 'succeeded', finished_at = now() where id = %s", (ended,))
    outcomes.drop_claims(conn, [number], doubted=[number])
    assert orphans(conn) == [runs]
    conn.execute("update dispatcher.job set state = 'succeeded', finished_at = now() where id = %s", (runs,))
    outcomes.drop_claims(conn, [number], doubted=[number])
    assert lists(conn) == 0


def test_job_that_another_runs_now_keeps_no_list_of_its_former_owner(conn: Connection, lease: Connection) -> None:
    id = enqueue(conn)
    (former,) = claim(lease)
    claims.release_jobs(conn, OWNER, [(former.id, former.attempt)])
    (present,) = claim(lease, owner=2)
    outcomes.drop_claims(conn, [former.claim, present.claim], doubted=[former.claim, present.claim])
    assert (lists(conn), orphans(conn), orphans(conn, 2)) == (1, [], [id])


def test_job_whose_release_was_lost_with_the_session_is_still_found(
    dsn: str, conn: Connection, lease: Connection, settling: Settling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let go of here, its claim looks empty and is dropped, while the row says that it runs."""
    id = enqueue(conn)
    (claimed,) = claim(lease)
    waiting = execution(claimed)
    settling.inflight.add([waiting])
    leading = Leading(conn)
    leading.dispatch._inflight = settling.inflight
    monkeypatch.setattr(leading.pool, "take_waiting", lambda: [waiting])
    lost = session(dsn)
    lost.close()
    with pytest.raises(psycopg.OperationalError):
        leading.dispatch.return_waiting(lost)
    assert settling.inflight.empty_claims == 1
    settling.completer.step()
    assert settling.inflight.empty_claims == 1  # kept, and tried again later
    assert [row[0] for row in claims.own_running(conn, OWNER)] == [id]
    assert orphans(conn) == [id]


def test_lists_are_dropped_under_steady_work(conn: Connection, lease: Connection, settling: Settling) -> None:
    """There is an outcome to settle at every step: leisure never comes."""
    for _ in range(DROP_CLAIMS + 50):
        enqueue(conn)
    for _ in range(DROP_CLAIMS + 50):
        (claimed,) = claim(lease, take=1)
        settling.settle(execution(claimed))
        assert lists(conn) <= DROP_CLAIMS
    assert lists(conn) == settling.inflight.empty_claims == 50


def test_lists_that_could_not_be_dropped_are_dropped_later(
    dsn: str, conn: Connection, lease: Connection, settling: Settling
) -> None:
    enqueue(conn)
    settling.settle(*map(execution, claim(lease)))
    with open_transaction(dsn, LOCKED):
        settling.completer.step()
        assert settling.inflight.empty_claims == 1
    assert lists(conn) == 1
    for _ in range(3):  # each waits until it is time to try again
        settling.completer.step()
    assert (lists(conn), settling.inflight.empty_claims) == (0, 0)


def test_outcomes_beside_a_drop_that_failed_are_recorded_once(
    dsn: str, conn: Connection, lease: Connection, settling: Settling
) -> None:
    """The group was settled before the drop failed: it must be neither lost nor counted again."""
    for _ in range(DROP_CLAIMS):
        enqueue(conn)
    claimed = [row for _ in range(DROP_CLAIMS) for row in claim(lease, take=1)]
    with open_transaction(dsn, LOCKED):
        settling.settle(*map(execution, claimed))
        assert settling.inflight.empty_claims == DROP_CLAIMS
    settling.completer.step()
    assert lists(conn) == 0
    assert (settling.finished("succeeded"), settling.stale(), len(settling.inflight)) == (DROP_CLAIMS, 0, 0)
