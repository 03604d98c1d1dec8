"""When the fence stands and when it does not, by the heart's own rules."""

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dispatcher.fence import boottime
from dispatcher.heart import COOPERATION, FENCE_MARGIN, Heart
from dispatcher.inflight import InFlight
from dispatcher.metrics import Metrics

ORPHAN_AFTER_S = 30.0


class Record:
    """A fence that kills nobody."""

    deadline: float | None = None

    def arm(self, deadline: float) -> None:
        self.deadline = deadline

    def disarm(self, unless: Callable[[], bool] = lambda: False) -> None:
        self.meanwhile()
        if not unless():
            self.deadline = None

    def seal(self, deadline: float) -> None:
        self.deadline = deadline

    def meanwhile(self) -> None:
        """What another thread does between the look and the act."""


@pytest.fixture
def lease() -> SimpleNamespace:
    return SimpleNamespace(
        conn=object(), term=1, trusted_from=boottime(), claim_from=0.0, hold_until=0.0, duration_s=1.0
    )


@pytest.fixture
def pool() -> SimpleNamespace:
    return SimpleNamespace(waiting=0)


@pytest.fixture
def inflight() -> InFlight:
    return InFlight()


@pytest.fixture
def heart(lease: SimpleNamespace, pool: SimpleNamespace, inflight: InFlight, monkeypatch: pytest.MonkeyPatch) -> Heart:
    heart = Heart(
        lease=cast(Any, lease),
        dispatch=cast(Any, SimpleNamespace(woken=threading.Event(), set_unknown=None)),
        pools=cast(Any, pool),
        inflight=inflight,
        began=lambda: None,
        canceled=lambda _ids: None,
        replica=1,
        lease_number=1,
        heartbeat_s=0.01,
        poll_interval_s=1.0,
        orphan_after_s=ORPHAN_AFTER_S,
        metrics=Metrics(),
    )
    monkeypatch.setattr(heart, "_fence", Record())
    return heart


def deadline(heart: Heart) -> float | None:
    return cast(Record, heart._fence).deadline


def run_job(inflight: InFlight) -> None:
    inflight.executing_in("thread")[1, 1] = cast(Any, object())


def test_the_fence_is_counted_from_the_last_answer_that_counts(heart: Heart, lease: SimpleNamespace) -> None:
    lease.trusted_from = 100.0
    heart.arm_fence()
    assert deadline(heart) == 100.0 + ORPHAN_AFTER_S * (1 - FENCE_MARGIN)


def test_jobs_are_asked_to_stop_well_before_the_fence_strikes(
    heart: Heart, lease: SimpleNamespace, inflight: InFlight
) -> None:
    run_job(inflight)
    lease.trusted_from = boottime() - COOPERATION * ORPHAN_AFTER_S + 1
    assert not heart.losing()
    lease.trusted_from = boottime() - COOPERATION * ORPHAN_AFTER_S - 1
    assert heart.losing()
    assert COOPERATION < 1 - FENCE_MARGIN


def test_a_job_that_a_thread_has_just_taken_stays_fenced(heart: Heart, lease: SimpleNamespace) -> None:
    """For an instant it neither waits nor is seen to run: whoever looks then must not take the fence away."""
    heart.arm_fence()
    lease.conn = None
    assert heart.idle
    heart.losing()
    assert deadline(heart) is not None


def test_a_job_claimed_while_the_fence_is_being_taken_away_stays_fenced(
    heart: Heart, lease: SimpleNamespace, inflight: InFlight, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The main thread has found no job, and comes to act only after the heart's thread has claimed one and armed."""

    def claim() -> None:
        inflight._all[1, 1] = cast(Any, SimpleNamespace(outcome=None))
        heart.arm_fence()

    heart.arm_fence()
    time.sleep(0.03)
    lease.conn = None
    monkeypatch.setattr(heart._fence, "meanwhile", claim)
    assert not heart.losing()
    assert deadline(heart) is not None


def test_a_job_taken_from_the_queue_right_before_the_process_froze_stays_fenced(
    heart: Heart, lease: SimpleNamespace, inflight: InFlight
) -> None:
    heart.arm_fence()
    inflight._all[1, 1] = cast(Any, SimpleNamespace(outcome=None))  # neither waits nor executes
    time.sleep(0.03)
    lease.conn = None
    heart.losing()
    assert deadline(heart) is not None


@pytest.mark.parametrize("job", ["none", "executing", "just taken from the queue", "ended, not recorded"])
def test_a_replica_that_is_to_end_by_itself_is_fenced_sooner_where_its_jobs_need_that(
    heart: Heart, lease: SimpleNamespace, inflight: InFlight, job: str
) -> None:
    """Nobody can move that timer again."""
    if job == "executing":
        run_job(inflight)
    if job != "none":
        outcome = object() if job == "ended, not recorded" else None
        inflight._all[1, 1] = cast(Any, SimpleNamespace(outcome=outcome))
    heart.strike_in(2 * ORPHAN_AFTER_S)
    struck = deadline(heart)
    assert struck is not None
    needed = job in ("executing", "just taken from the queue")
    assert (struck < lease.trusted_from + ORPHAN_AFTER_S) is needed


def test_a_replica_that_runs_no_job_is_not_fenced(heart: Heart, lease: SimpleNamespace) -> None:
    heart.arm_fence()
    time.sleep(0.03)  # two heartbeats of this heart
    lease.conn = None
    assert not heart.losing()
    assert deadline(heart) is None


@pytest.mark.parametrize("left", ["nothing", "executing", "claimed"])
def test_at_the_end_the_fence_stands_only_while_a_job_is_in_doubt(
    heart: Heart, lease: SimpleNamespace, inflight: InFlight, left: str
) -> None:
    lease.drop = lambda: None
    if left == "executing":
        run_job(inflight)
    elif left == "claimed":
        inflight._all[1, 1] = cast(Any, object())
    heart.arm_fence()
    heart.close()
    assert (deadline(heart) is None) == (left == "nothing")


def test_without_a_session_a_job_that_was_overlooked_is_fenced_again(
    heart: Heart, lease: SimpleNamespace, inflight: InFlight
) -> None:
    """The heart cannot connect, and so never comes to arm it: the main thread does."""
    lease.conn = None
    heart.losing()
    assert deadline(heart) is None
    run_job(inflight)
    heart.losing()
    assert deadline(heart) == lease.trusted_from + ORPHAN_AFTER_S * (1 - FENCE_MARGIN)


def test_jobs_that_wait_for_a_thread_are_fenced_as_well(heart: Heart, pool: SimpleNamespace) -> None:
    pool.waiting = 1
    heart.losing()
    assert deadline(heart) is not None


def test_an_answer_that_hangs_takes_the_fence_from_a_replica_without_jobs(heart: Heart, lease: SimpleNamespace) -> None:
    """The session looks alive and answers nothing: there is nothing to protect, and it may yet come back."""
    heart.arm_fence()
    time.sleep(0.03)
    lease.trusted_from = boottime() - ORPHAN_AFTER_S
    assert not heart.losing()
    assert deadline(heart) is None


def test_a_cancel_that_is_heard_right_after_the_look_is_not_slept_over(heart: Heart, lease: SimpleNamespace) -> None:
    """By the listener's thread, before the leader comes to rest: until the next beat nothing else would find it."""

    class Hearing:
        """Hears of it when the heart, past its look for cancels, asks whether anything waits."""

        @property
        def waiting(self) -> int:
            heart.look_for_cancels()
            return 0

    heart._pools = cast(Any, Hearing())
    lease.beat, lease.beat_in, lease.may_claim = lambda **_: False, lambda: 60.0, lambda: True
    awake: list[bool] = []
    dispatch = vars(heart._dispatch)
    dispatch.update(step=lambda _conn: 0, room=lambda: 1, nap=lambda: None, patience=lambda seconds: seconds)
    dispatch.update(looked_everywhere=True, awake=False, read_again=lambda: None, return_stalled=lambda _conn: None)
    dispatch.update(rest=lambda _seconds: awake.append(heart._dispatch.woken.is_set()))
    heart.step()
    assert awake == [True]


def test_a_new_sessions_answers_count_only_once_its_database_was_seen_to_know_what_runs_here(
    heart: Heart, lease: SimpleNamespace
) -> None:
    """A server that was promoted may have lost our claims, and who leads there waits orphan_after, no longer."""
    before = lease.trusted_from

    def connect() -> bool:
        lease.conn, lease.trusted_from = object(), before + 5.0
        return False  # nothing was asked on it yet

    lease.conn, lease.connect = None, connect
    heart.step()
    heart.arm_fence()
    assert heart.trusted_from == before
    assert heart._fence.deadline == before + ORPHAN_AFTER_S * (1 - FENCE_MARGIN)
