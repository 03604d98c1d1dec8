"""Whoever watches is told of jobs; nobody else is, and no job is the worse for it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import cast

import psycopg
import pytest
from psycopg import conninfo

from dispatcher import announcer as announcer_module
from dispatcher.announcer import WATCHED_FOR_S, Announcer
from dispatcher.db import Connection
from dispatcher.embedded import EmbeddedPostgres
from dispatcher.metrics import Metrics
from dispatcher.outcome import Outcome
from tests import servers
from tests.db.leading import A, Leading
from tests.db.running import (
    Settling,
    as_job,
    claim,
    enqueue,
    execution,
    job,
    publish,
    session,
    state,
    until,
    value,
)
from tests.system.replicas import CALM, PATIENCE_S, Fleet


class Watch:
    """A announcer with a clock that the test turns, and what is heard of it."""

    def __init__(self, dsn: str) -> None:
        self.now = 1000.0
        self.metrics = Metrics()
        self.announcer = Announcer(metrics=self.metrics, clock=lambda: self.now)
        self.listening = listen(dsn)

    def heard(self) -> list[str]:
        """What has been told since the last call."""
        return heard(self.listening)


def listen(dsn: str) -> Connection:
    own = psycopg.connect(dsn, autocommit=True)
    own.execute("listen dispatcher_events")
    return own


def heard(listening: Connection) -> list[str]:
    """Everything committed before this call: notifications arrive in the order of commits, and its own comes last."""
    listening.execute("notify dispatcher_events, 'end'")
    payloads: list[str] = []
    for one in listening.notifies(timeout=PATIENCE_S):
        if one.payload == "end":
            return payloads
        payloads.append(one.payload)
    raise AssertionError("notifications do not arrive")


@pytest.fixture
def watch(dsn: str) -> Iterator[Watch]:
    watch = Watch(dsn)
    yield watch
    watch.listening.close()


@pytest.fixture
def telling(dsn: str, watch: Watch) -> Iterator[Settling]:
    """A completer that tells."""
    settling = Settling(dsn, changed=watch.announcer.tell)
    yield settling
    settling.completer.close()


@pytest.fixture
def mute(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Has PostgreSQL refuse whatever is told from then on."""
    return lambda: monkeypatch.setattr(announcer_module, "payloads", lambda _ids: ["x" * 8000])


# What is told, and until when.


def test_claimed_jobs_are_told_once_the_pool_has_them(conn: Connection, lease: Connection, watch: Watch) -> None:
    publish(conn, A)
    had: list[int] = []

    def tell(own: Connection, ids: Iterable[int]) -> None:
        had.append(len(leading.pool.taken))
        watch.announcer.tell(own, ids)

    leading = Leading(lease, changed=tell)
    watch.announcer.heard()
    ids = [enqueue(conn, "a") for _ in range(3)]
    assert leading.rounds() == ids
    assert had == [3]
    assert watch.heard() == [",".join(map(str, ids))]


def test_ends_and_retries_are_told(conn: Connection, lease: Connection, telling: Settling, watch: Watch) -> None:
    watch.announcer.heard()
    ids = [enqueue(conn) for _ in range(2)]
    first, second = claim(lease)
    telling.settle(execution(first), execution(second, Outcome.snooze(as_job(second), 60.0)))
    assert watch.heard() == [",".join(map(str, ids))]


def test_end_that_was_recorded_before_the_answer_was_lost_is_told(
    conn: Connection, lease: Connection, telling: Settling, watch: Watch
) -> None:
    """The job that is sent again matches no row any more."""
    watch.announcer.heard()
    id = enqueue(conn)
    (claimed,) = claim(lease)
    ended = execution(claimed)
    conn.execute("update dispatcher.job set state = 'succeeded', finished_at = now() where id = %s", (id,))
    ended.resent = True
    telling.settle(ended)
    assert watch.heard() == [str(id)]


def test_job_that_is_busy_is_told_once_it_is_recorded(
    dsn: str, conn: Connection, lease: Connection, telling: Settling, watch: Watch
) -> None:
    watch.announcer.heard()
    free, busy = (enqueue(conn) for _ in range(2))
    claimed = claim(lease)
    with psycopg.connect(dsn) as user:
        user.execute("select from dispatcher.job where id = %s for update", (busy,))
        telling.settle(*map(execution, claimed))
        assert watch.heard() == [str(free)]
    telling.completer.step()
    assert watch.heard() == [str(busy)]


def test_progress_is_told(conn: Connection, lease: Connection, telling: Settling, watch: Watch) -> None:
    watch.announcer.heard()
    id = enqueue(conn)
    (claimed,) = claim(lease)
    telling.completer.report_progress(*execution(claimed).key, 50.0, "half")
    telling.completer.step()
    assert job(conn, id)["progress"] == 50.0
    assert watch.heard() == [str(id)]


def test_nothing_is_told_before_and_after_somebody_watches(
    conn: Connection, lease: Connection, telling: Settling, watch: Watch
) -> None:
    def run() -> int:
        id = enqueue(conn)
        (claimed,) = claim(lease)
        telling.completer.report_progress(id, claimed.attempt, 50.0, None)
        telling.settle(execution(claimed))
        assert state(conn, id) == "succeeded"
        return id

    run()
    assert watch.heard() == []
    watch.announcer.heard()
    id = run()
    assert watch.heard() == [str(id)] * 2  # its progress and its end
    watch.now += WATCHED_FOR_S
    run()
    assert watch.heard() == []


def test_whatever_the_number_every_job_is_covered(
    conn: Connection, lease: Connection, telling: Settling, watch: Watch
) -> None:
    """Ids of many digits: a group does not fit one notification."""
    watch.announcer.heard()
    conn.execute("alter table dispatcher.job alter id restart with 1000000000000000000")
    conn.execute("select dispatcher.enqueue('quick') from generate_series(1, 2500)")
    claimed = [one for _ in range(3) for one in claim(lease)]
    telling.completer.report_progress(claimed[0].id, claimed[0].attempt, 1.0, None)
    telling.completer.step()
    for one in claimed:
        telling.completer.report_progress(one.id, one.attempt, 50.0, None)
    while value(conn, "select count(*) from dispatcher.job where progress is distinct from 50"):
        telling.completer.step()
    assert "*" in watch.heard()
    telling.put(*map(execution, claimed))
    for _ in range(3):
        telling.completer.step()
    texts = watch.heard()
    assert sorted(int(id) for text in texts for id in text.split(",")) == sorted(one.id for one in claimed)
    assert max(map(len, texts)) <= 7900


# What must not happen when telling fails.


def test_outcomes_of_which_nobody_could_be_told_are_recorded_once(
    conn: Connection, lease: Connection, telling: Settling, watch: Watch, mute: Callable[[], None]
) -> None:
    ids = [enqueue(conn) for _ in range(3)]
    claimed = claim(lease)
    telling.settle(execution(claimed[0]))  # the session stands
    before = sessions(conn)
    watch.announcer.heard()
    mute()
    telling.completer.report_progress(claimed[1].id, claimed[1].attempt, 50.0, None)
    telling.completer.step()
    assert not watch.announcer.wanted, "each group would fail"
    watch.announcer.heard()
    telling.settle(*map(execution, claimed[1:]))
    for _ in range(2):
        telling.completer.wake()
        telling.completer.step()
    assert [state(conn, id) for id in ids] == ["succeeded"] * 3
    assert progress(conn, ids[1]) == 50.0
    assert (telling.finished("succeeded"), telling.stale(), len(telling.inflight)) == (3, 0, 0)
    assert len(telling.told) == 2, "a group was sent again"
    assert telling.metrics.registry.get_sample_value("dispatcher_db_errors_total") == 0
    assert watch.metrics.registry.get_sample_value("dispatcher_db_errors_total") == 2
    assert sessions(conn) == before
    assert watch.heard() == []


def progress(conn: Connection, id: int) -> float | None:
    """What is written; the view says 100 of each job that succeeded."""
    return cast(float | None, value(conn, "select progress from dispatcher.job where id = %s", id))


def sessions(conn: Connection) -> set[int]:
    """Those of claims and of outcomes."""
    rows = conn.execute(
        "select pid from pg_stat_activity where application_name = 'test' and datname = current_database()"
    )
    return {pid for (pid,) in rows}


@pytest.mark.parametrize("what", ["outcomes", "progress"])
def test_session_that_ends_while_it_tells_costs_no_outcome(
    dsn: str, conn: Connection, lease: Connection, watch: Watch, what: str
) -> None:
    left = [what]

    def tell(own: Connection, ids: Iterable[int]) -> None:
        if left:
            left.clear()
            conn.execute("select pg_terminate_backend(%s, 10000)", (own.info.backend_pid,))
        watch.announcer.tell(own, ids)

    telling = Settling(dsn, changed=tell)
    ids = [enqueue(conn) for _ in range(3)]
    claimed = claim(lease)
    watch.announcer.heard()
    if what == "progress":
        telling.completer.report_progress(claimed[0].id, claimed[0].attempt, 50.0, None)
    telling.settle(*map(execution, claimed[:2]))
    telling.put(execution(claimed[2]))
    for _ in range(3):
        telling.completer.wake()
        telling.completer.step()
    telling.completer.close()
    assert [state(conn, id) for id in ids] == ["succeeded"] * 3
    assert (telling.finished("succeeded"), telling.stale(), len(telling.inflight)) == (3, 0, 0)
    assert progress(conn, ids[0]) == (50.0 if what == "progress" else None)


def test_claim_of_which_nobody_could_be_told_stands(
    conn: Connection, lease: Connection, watch: Watch, mute: Callable[[], None]
) -> None:
    publish(conn, A)
    leading = Leading(lease, changed=watch.announcer.tell)
    ids = [enqueue(conn, "a") for _ in range(3)]
    mute()
    watch.announcer.heard()
    assert leading.rounds() == ids
    assert not watch.announcer.wanted
    assert not lease.closed
    assert {state(conn, id) for id in ids} == {"running"}


def test_commits_that_notify_slowly_hold_up_a_claim_for_a_moment_only(
    postgres: EmbeddedPostgres, postgres_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each holds the lock over the cluster that telling needs as well."""
    stop = threading.Event()

    def notify_slowly() -> None:
        name = conninfo.conninfo_to_dict(postgres_dsn)["dbname"]
        with psycopg.connect(postgres.dsn, dbname=name, autocommit=True) as own:
            own.execute("set commit_siblings = 0")
            own.execute("set commit_delay = 100000")  # microseconds
            while not stop.is_set():
                with own.transaction():
                    own.execute("insert into slow default values")
                    own.execute("notify somewhere")

    with psycopg.connect(postgres_dsn, autocommit=True) as conn, session(postgres_dsn) as lease:
        publish(conn, A)
        conn.execute("create table slow (id bigint generated always as identity)")
        announcer = Announcer(metrics=Metrics())
        leading = Leading(lease, changed=announcer.tell)
        slow = threading.Thread(target=notify_slowly)
        slow.start()
        try:
            announcer.heard()
            while announcer.wanted:
                id = enqueue(conn, "a")
                assert leading.rounds() == [id]
                leading.end([id])
        finally:
            stop.set()
            slow.join()
        assert "lock timeout" in caplog.text  # of 50 ms
        assert not lease.closed


# Real replicas.


@pytest.fixture(scope="module")
def fleet(server: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A leader and a stand-by."""
    name = servers.add_database(server, template=servers.MIGRATED)
    try:
        with Fleet(servers.role_dsn(server, name), tmp_path_factory.mktemp("telling")) as fleet:
            fleet.start_pair(**CALM)
            yield fleet
    finally:
        servers.drop_database(server, name)


@pytest.fixture
def listening(fleet: Fleet) -> Iterator[Connection]:
    with listen(fleet.dsn) as own:
        yield own


def ids_in(payloads: Iterable[str]) -> list[int]:
    return [int(id) for text in payloads for id in text.split(",")]


def ask(fleet: Fleet) -> None:
    """As whoever watches does it."""
    fleet.query("select pg_notify('dispatcher_fleet', 'watch')::text")


def ask_until_told(fleet: Fleet, listening: Connection) -> list[int]:
    """What is told by when the leader has heard."""
    ask(fleet)
    told: list[int] = []

    def tells() -> bool:
        fleet.until_all(fleet.enqueue("quick"))
        told.extend(ids_in(heard(listening)))
        return bool(told)

    until(tells)
    return told


def test_claim_progress_and_end_of_a_job_are_heard_and_nothing_unwatched(fleet: Fleet, listening: Connection) -> None:
    unwatched = fleet.enqueue("quick", 20)
    fleet.until_all(unwatched)
    fleet.until_all(fleet.enqueue("quick"))  # once it is recorded, the groups before it have been told, were they to be
    told = ask_until_told(fleet, listening)
    report, gate = fleet.gate("report"), fleet.gate("end")
    (id,) = fleet.enqueue("halfway", report=str(report), until=str(gate))

    def is_told(times: int) -> bool:
        told.extend(ids_in(heard(listening)))
        return told.count(id) == times

    until(lambda: is_told(1))
    assert fleet.states([id]) == {id: "running"}
    report.touch()
    until(lambda: is_told(2))
    assert fleet.job(id)["progress"] == 50.0
    gate.touch()
    until(lambda: is_told(3))
    assert fleet.states([id]) == {id: "succeeded"}
    assert not set(told) & set(unwatched)
    assert not any(replica.said("nobody understands") for replica in fleet.replicas)


def test_each_of_many_jobs_is_heard_when_it_is_claimed_and_when_it_ends(fleet: Fleet, listening: Connection) -> None:
    told = ask_until_told(fleet, listening)
    ids = fleet.enqueue("quick", 5000)

    wanted = set(ids)

    def all_told() -> bool:
        texts = heard(listening)
        assert all(len(text) <= 7900 for text in texts)
        if "*" not in texts:
            told.extend(ids_in(texts))
        return "*" in texts or sorted(id for id in told if id in wanted) == sorted([*ids, *ids])

    until(all_told)


def test_replica_that_cannot_tell_keeps_its_lease_and_its_jobs(fleet: Fleet, listening: Connection) -> None:
    """Last: from here on the leader says nothing that PostgreSQL would take."""
    (leader,) = (replica for replica in fleet.replicas if replica.pid == fleet.leader_pid())
    term = fleet.term()
    ask_until_told(fleet, listening)
    fleet.until_all(fleet.enqueue("garble"))
    ids: list[int] = []

    def failed(times: int) -> bool:
        ids.extend(fleet.enqueue("quick", 20))
        fleet.until_all(ids)
        return leader.metric("dispatcher_db_errors_total") >= times

    for times in (1, 2, 3):
        ask(fleet)
        until(partial(failed, times))
    assert not set(ids) & set(ids_in(heard(listening)))
    assert (fleet.leader_pid(), fleet.term()) == (leader.pid, term)
    assert not leader.said("session is lost")
    starts = Counter(event.job for event in fleet.events("start"))
    assert {starts[id] for id in ids} == {1}
    assert {fleet.job(id)["attempt"] for id in ids} == {1}
