"""The stager: due jobs become pending on time, whoever holds a row locked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from dispatcher.db import Connection
from dispatcher.metrics import Metrics
from dispatcher.services import stager as stager_module
from dispatcher.services.stager import Stager
from tests.db.running import enqueue, job, open_transaction, publish, session, state, until, value
from tests.timing import quickest


class Staging:
    """A stager and what it is told and tells."""

    def __init__(self, dsn: str) -> None:
        self.leading = True
        self.awake: Callable[[], bool] = lambda: False
        self.promoted = threading.Event()
        self.stop = threading.Event()
        self.opened: list[Connection] = []
        self.stager = Stager(
            open_session=lambda: self._open(dsn),
            leading=lambda: self.leading,
            awake=lambda: self.awake(),  # noqa: PLW0108 - a test replaces it
            marked=lambda: None,
            promoted=self.promoted.set,
            poll_interval_s=60.0,
            metrics=Metrics(),
            stop=self.stop,
        )

    def _open(self, dsn: str) -> Connection:
        self.opened.append(session(dsn))
        return self.opened[-1]

    def serve(self) -> threading.Thread:
        """Steps on and on in a thread, as the daemon does."""

        def loop() -> None:
            while not self.stop.is_set():
                self.stager.step()

        thread = threading.Thread(target=loop)
        thread.start()
        return thread


@pytest.fixture
def staging(dsn: str, conn: Connection) -> Iterator[Staging]:
    publish(conn)
    staging = Staging(dsn)
    yield staging
    staging.stop.set()
    staging.stager.wake()
    staging.stager.close()


def due(conn: Connection, count: int = 1, ago: str = "1s") -> list[int]:
    """Scheduled jobs whose time has come."""
    query = """insert into dispatcher.job (type, state, run_at, payload)
               select 'quick', 'scheduled', now() - %s::interval, '{}' from generate_series(1, %s) returning id"""
    return [id for (id,) in conn.execute(query, (ago, count))]


def test_due_jobs_become_pending_and_the_dispatch_is_told(conn: Connection, staging: Staging) -> None:
    (id,) = due(conn)
    later = enqueue(conn, delay=3600)
    assert staging.stager.turn() == 0.0
    assert (state(conn, id), state(conn, later)) == ("pending", "scheduled")
    assert staging.promoted.is_set()
    assert staging.stager.turn() == 60.0  # the next one is farther off than the poll


def test_it_sleeps_until_the_earliest_is_due(conn: Connection, staging: Staging) -> None:
    enqueue(conn, delay=30)
    enqueue(conn, delay=20)
    assert 18 < staging.stager.turn() < 20.01


def test_job_is_promoted_on_time(conn: Connection, staging: Staging) -> None:
    thread = staging.serve()

    def measure() -> float:
        staging.promoted.clear()
        id = enqueue(conn, delay=0.3)
        staging.stager.wake()
        assert staging.promoted.wait(30)
        late = "select extract(epoch from clock_timestamp() - run_at)::float8 from dispatcher.job where id = %s"
        late_s = float(value(conn, late, id))
        assert state(conn, id) == "pending"
        return late_s

    assert quickest(measure, within_s=0.25) < 0.25
    staging.stop.set()
    staging.stager.wake()
    thread.join(10)


def test_earlier_job_than_known_wakes_it(conn: Connection, staging: Staging) -> None:
    enqueue(conn, delay=50)
    thread = staging.serve()
    until(lambda: staging.opened)
    early = enqueue(conn, delay=0.1)
    staging.stager.wake()  # as the listener does
    assert staging.promoted.wait(10)
    assert state(conn, early) == "pending"
    staging.stop.set()
    staging.stager.wake()
    thread.join(10)


@pytest.mark.parametrize("lock", ["for update", "for no key update"])
def test_locked_row_waits_and_blocks_nobody(dsn: str, conn: Connection, staging: Staging, lock: str) -> None:
    (locked,) = due(conn, ago="1h")
    others = due(conn, 3)
    staging.stager.turn()  # connected
    put_back = "update dispatcher.job set state = 'scheduled', run_at = now() - interval '1s' where id = any(%s)"
    conn.execute(put_back, ([locked, *others],))
    with open_transaction(dsn, f"select from dispatcher.job where id = {locked} {lock}"):
        assert staging.stager.turn() == 0.0  # to wait for the lock would be an error
        assert [state(conn, id) for id in others] == ["pending"] * 3
        assert state(conn, locked) == "scheduled"
        assert 0 < staging.stager.turn() <= 1.0  # looks again soon, but does not spin
    staging.stager.turn()
    assert state(conn, locked) == "pending"


def test_promotion_and_cancel_exclude_each_other(dsn: str, conn: Connection, staging: Staging) -> None:
    (id,) = due(conn)
    with open_transaction(dsn, f"select dispatcher.cancel({id})") as user:
        staging.stager.turn()
        user.commit()
    staging.stager.turn()
    assert state(conn, id) == "canceled"


def test_large_backlog_goes_in_batches(conn: Connection, staging: Staging, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stager_module, "BATCH", 40)
    ids = due(conn, 100)
    left = []
    while staging.stager.turn() == 0.0:
        left.append(value(conn, "select count(*) from dispatcher.job where state = 'scheduled'"))
    assert left == [60, 20, 0]
    assert {state(conn, id) for id in ids} == {"pending"}


def test_foreign_key_s_lock_hides_nothing(dsn: str, conn: Connection, staging: Staging) -> None:
    (id,) = due(conn)
    with open_transaction(dsn, f"select from dispatcher.job where id = {id} for key share"):
        staging.stager.turn()
        assert state(conn, id) == "pending"


def test_promotion_keeps_the_time_it_was_due(conn: Connection, staging: Staging) -> None:
    (id,) = due(conn, ago="1h")
    before = job(conn, id)["run_at"]
    staging.stager.turn()
    assert job(conn, id)["run_at"] == before


def test_standby_promotes_nothing_and_keeps_no_session(conn: Connection, staging: Staging) -> None:
    due(conn)
    staging.leading = False
    staging.stager.wake()
    thread = staging.serve()
    staging.stop.set()
    staging.stager.wake()
    thread.join(10)
    assert not staging.opened
    assert not staging.promoted.is_set()


def test_ended_session_is_replaced(conn: Connection, staging: Staging) -> None:
    staging.stager.turn()
    conn.execute("select pg_terminate_backend(%s)", (staging.opened[0].info.backend_pid,))
    due(conn)
    thread = staging.serve()
    staging.stager.wake()
    until(lambda: staging.opened[0].closed)
    staging.stager.wake()
    assert staging.promoted.wait(10)
    staging.stop.set()
    staging.stager.wake()
    thread.join(10)


def test_job_enqueued_while_the_leader_was_awake_is_not_slept_over(conn: Connection, staging: Staging) -> None:
    """Nobody notifies an awake leader: if it dozes around the stager's look, the look must come after it."""
    looks: list[str] = []

    def awake() -> bool:
        """Somebody enqueued while the leader was still awake; now it dozes."""
        looks.append("awake")
        if len(looks) == 1:
            enqueue(conn, delay=0.05)
        return False

    staging.awake = awake
    assert staging.stager.turn() <= 0.06


def test_a_stop_that_comes_before_the_wake_up_is_cleared_is_not_slept_over(dsn: str) -> None:
    """The daemon sets the stop, then wakes: nothing else would end a wait of a minute."""
    staging = Staging(dsn)
    staging.leading = False
    staging.stop.set()
    staging.stager.wake()
    step = threading.Thread(target=staging.stager.step, daemon=True)
    step.start()
    step.join(5.0)
    ended = not step.is_alive()
    staging.stager.wake()
    step.join()
    assert ended
