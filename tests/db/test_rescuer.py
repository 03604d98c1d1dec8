"""Jobs of vanished replicas: taken, but never while their owner may still run them."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dispatcher.db import Connection, SessionLimits, connect_session
from dispatcher.executor import Executor, Registry
from dispatcher.identity import Identity
from dispatcher.metrics import Metrics
from dispatcher.queries import replicas, upkeep
from dispatcher.queries.replicas import Process
from dispatcher.retry import RetryPolicy
from dispatcher.services.rescuer import COME_BACK_S, Rescuer
from tests.db.contenders import Clock, backend, contender, gone, register

ORPHAN_AFTER_S = 30.0


@dataclasses.dataclass
class Observer:
    """A rescuer, its clock, and whether it leads."""

    rescuer: Rescuer
    clock: Clock
    metrics: Metrics
    leads: bool = True

    def rescued(self, reason: str) -> float:
        return float(self.metrics.rescued.labels(reason)._value.get())


@contextlib.contextmanager
def watching(dsn: str, replica: int, *, leads: bool = True, stop: threading.Event | None = None) -> Iterator[Observer]:
    clock, metrics = Clock(), Metrics()
    observer: Observer

    def open_session() -> Connection:
        return connect_session(dsn, name="rescuer", limits=SessionLimits())

    def lead() -> bool:
        return observer.leads

    spec = Executor("import", lambda job, ctx: None, "tests", retry=RetryPolicy(max_attempts=3))
    rescuer = Rescuer(
        open_session=open_session,
        replica=replica,
        lease_number=1,
        orphan_after_s=ORPHAN_AFTER_S,
        overdue_grace_s=ORPHAN_AFTER_S,
        registry=Registry([spec]),
        leading=lead,
        rescued=lambda: None,
        metrics=metrics,
        stop=stop or threading.Event(),
        clock=clock,
        chance=lambda: 0.5,
    )
    observer = Observer(rescuer, clock, metrics, leads)
    try:
        yield observer
    finally:
        rescuer.close()


@pytest.fixture
def observer(dsn: str, conn: Connection) -> Iterator[Observer]:
    with watching(dsn, register(conn)) as it:
        yield it


def running_job(conn: Connection, owner: int, *, attempt: int = 1, failures: int = 0) -> int:
    """A job that `owner` claimed."""
    row = conn.execute(
        "insert into dispatcher.job (type, state, attempt, failures, owner, started_at, payload)"
        " values ('import', 'running', %s, %s, %s, now(), '{}') returning id",
        [attempt, failures, owner],
    ).fetchone()
    assert row is not None
    conn.execute(
        "insert into dispatcher.claim (owner, term, job_ids) values (%s, 1, array[%s::bigint])", [owner, row[0]]
    )
    return int(row[0])


def job(conn: Connection, id: int) -> Any:
    return conn.execute("select state, attempt, failures, owner from dispatcher.job where id = %s", [id]).fetchone()


def known(conn: Connection, replica: int) -> bool:
    row = conn.execute("select exists (select from dispatcher.replica where id = %s)", [replica]).fetchone()
    return row is not None and bool(row[0])


def test_a_vanished_owners_job_is_taken_only_after_orphan_after(conn: Connection, observer: Observer) -> None:
    owner = register(conn)
    id = running_job(conn, owner)
    observer.rescuer.look()
    observer.clock.now += ORPHAN_AFTER_S - 0.1
    observer.rescuer.look()
    assert job(conn, id) == ("running", 1, 0, owner)
    observer.clock.now += 0.2
    observer.rescuer.look()
    assert job(conn, id) == ("scheduled", 1, 1, None), "a crash counts as a failure"
    assert not known(conn, owner)
    assert observer.rescued("vanished") == 1


def test_who_is_not_back_yet_after_an_outage_that_was_everybody_s_is_not_taken_for_gone(
    conn: Connection, observer: Observer
) -> None:
    owner = register(conn)
    id = running_job(conn, owner)
    observer.rescuer.look()
    observer.rescuer.close()  # the database is away
    observer.clock.now += ORPHAN_AFTER_S + 1
    observer.rescuer.look()
    assert job(conn, id) == ("running", 1, 0, owner)
    assert known(conn, owner)
    observer.clock.now += COME_BACK_S + 0.1
    observer.rescuer.look()
    assert not known(conn, owner)


def test_a_job_that_keeps_killing_its_process_fails_for_good(conn: Connection, observer: Observer) -> None:
    id = running_job(conn, register(conn), attempt=3, failures=2)
    observer.rescuer.look()
    observer.clock.now += ORPHAN_AFTER_S + 1
    observer.rescuer.look()
    assert job(conn, id)[:3] == ("failed", 3, 3)


def test_a_present_owner_keeps_its_jobs_however_long_they_take(dsn: str, conn: Connection, observer: Observer) -> None:
    owner = register(conn)
    id = running_job(conn, owner)
    with contender(dsn, owner) as alive:
        assert alive.connect()
        for _ in range(3):
            observer.rescuer.look()
            observer.clock.now += 10 * ORPHAN_AFTER_S
    assert job(conn, id) == ("running", 1, 0, owner)


def test_an_owner_that_came_and_went_between_two_looks_starts_the_observers_clock_anew(
    dsn: str, conn: Connection, observer: Observer
) -> None:
    """Absence is sampled: without the incarnation the observer would add up two absences."""
    owner = register(conn)
    id = running_job(conn, owner)
    observer.rescuer.look()
    observer.clock.now += ORPHAN_AFTER_S - 1
    with contender(dsn, owner) as briefly:
        assert briefly.connect()
        pid = backend(briefly)
    assert gone(conn, pid)
    observer.clock.now += 2
    observer.rescuer.look()
    assert job(conn, id)[0] == "running"
    observer.clock.now += ORPHAN_AFTER_S - 0.1
    observer.rescuer.look()
    assert job(conn, id)[0] == "running"
    observer.clock.now += 0.2
    observer.rescuer.look()
    assert job(conn, id)[0] == "scheduled"


def test_a_slow_look_does_not_lengthen_an_absence(
    conn: Connection, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner may have vanished as late as the answer came."""
    owner = register(conn)
    id = running_job(conn, owner)
    quick = replicas.list_replicas

    def slow(conn: Connection, lease: int) -> list[replicas.Replica]:
        found = quick(conn, lease)
        observer.clock.now += 20
        return found

    monkeypatch.setattr(replicas, "list_replicas", slow)
    observer.rescuer.look()
    observer.clock.now += ORPHAN_AFTER_S - 10
    observer.rescuer.look()
    assert job(conn, id)[0] == "running"


def test_a_rescue_refuses_when_the_owner_is_back(dsn: str, conn: Connection) -> None:
    """It came back after the look and before the rescue's transaction."""
    owner = register(conn)
    with contender(dsn, owner) as back:
        assert back.connect()
        with conn.transaction():
            assert not upkeep.guard_rescue(conn, owner, 1)
        pid = backend(back)
    assert gone(conn, pid)
    with conn.transaction():
        assert upkeep.guard_rescue(conn, owner, 1)


def test_a_rescue_refuses_when_the_owner_came_and_went_since_it_was_observed(dsn: str, conn: Connection) -> None:
    owner = register(conn)
    with contender(dsn, owner) as briefly:
        assert briefly.connect()
        pid = backend(briefly)
    assert gone(conn, pid)
    with conn.transaction():
        assert not upkeep.guard_rescue(conn, owner, 0)


def test_nobody_comes_back_in_the_middle_of_a_rescue(dsn: str, conn: Connection) -> None:
    owner = register(conn)
    with conn.transaction(), contender(dsn, owner) as back:
        assert upkeep.guard_rescue(conn, owner, 0)
        assert not back.connect()
        assert back.conn is None
    with contender(dsn, owner) as back:
        assert back.connect()


def test_every_replica_observes_so_a_change_of_leader_does_not_start_the_wait_anew(
    conn: Connection, observer: Observer
) -> None:
    observer.leads = False
    owner = register(conn)
    id = running_job(conn, owner)
    observer.rescuer.look()
    observer.clock.now += ORPHAN_AFTER_S + 1
    observer.rescuer.look()
    assert job(conn, id)[0] == "running", "a standby takes nothing"
    observer.leads = True
    observer.rescuer.look()
    assert job(conn, id)[0] == "scheduled"


def test_a_job_that_a_user_holds_locked_is_taken_later_and_its_owners_row_stays_until_then(
    dsn: str, conn: Connection, observer: Observer
) -> None:
    owner = register(conn)
    locked, free = running_job(conn, owner), running_job(conn, owner)
    observer.rescuer.look()
    observer.clock.now += ORPHAN_AFTER_S + 1
    with connect_session(dsn, name="user", limits=SessionLimits()) as user, user.transaction():
        user.execute("select from dispatcher.job where id = %s for update", [locked])
        observer.rescuer.look()
        assert job(conn, locked)[0] == "running"
        assert job(conn, free)[0] == "scheduled"
        assert known(conn, owner)
    observer.rescuer.look()
    assert job(conn, locked)[0] == "scheduled"
    assert not known(conn, owner)


def test_an_owner_without_a_row_is_rescued_as_well(conn: Connection, observer: Observer) -> None:
    owner = register(conn)
    id = running_job(conn, owner)
    conn.execute("delete from dispatcher.replica where id = %s", [owner])
    observer.rescuer.look()
    observer.clock.now += ORPHAN_AFTER_S + 1
    observer.rescuer.look()
    assert job(conn, id)[0] == "scheduled"
    assert conn.execute("select count(*) from dispatcher.claim").fetchone() == (0,)


def test_a_job_that_another_runs_now_is_not_taken_with_those_of_its_former_owner(dsn: str, conn: Connection) -> None:
    """The former owner's list may name it for a while after it has been given back."""
    own, former = register(conn), register(conn)
    id = running_job(conn, former)
    conn.execute("update dispatcher.job set owner = %s, attempt = 2 where id = %s", [own, id])
    with watching(dsn, own) as observer:
        observer.rescuer.look()
        observer.clock.now += ORPHAN_AFTER_S + 1
        observer.rescuer.look()
        assert observer.rescued("vanished") == 0
    assert job(conn, id) == ("running", 2, 0, own)
    assert not known(conn, former)


def test_nobody_takes_jobs_from_itself(dsn: str, conn: Connection) -> None:
    """Its lease session may be away while it has not noticed, and its jobs run on."""
    own = register(conn)
    id = running_job(conn, own)
    with watching(dsn, own) as observer:
        observer.rescuer.look()
        observer.clock.now += ORPHAN_AFTER_S + 1
        observer.rescuer.look()
    assert job(conn, id) == ("running", 1, 0, own)
    assert known(conn, own)


def test_replicas_of_another_lease_are_none_of_its_business(conn: Connection, observer: Observer) -> None:
    row = conn.execute("insert into dispatcher.lease (name) values ('other') returning number").fetchone()
    assert row is not None
    owner = register(conn, lease=row[0])
    id = running_job(conn, owner)
    observer.rescuer.look()
    observer.clock.now += 10 * ORPHAN_AFTER_S
    observer.rescuer.look()
    assert job(conn, id)[0] == "running"


def test_overdue_job_of_a_living_owner_is_left_to_it_and_the_owner_asked(
    dsn: str, conn: Connection, observer: Observer
) -> None:
    """Its thread may run on: only the owner knows, so whoever leads settles nothing of it."""
    conn.execute(
        "insert into dispatcher.type (name, timeout_s, max_attempts, max_payload_bytes) values ('import', 60, 5, 1000)"
    )
    owner, other = register(conn), register(conn)
    with contender(dsn, owner) as alive, contender(dsn, other) as also_alive:
        assert alive.connect()
        assert also_alive.connect()
        overdue, timely = running_job(conn, owner), running_job(conn, other)
        late = "update dispatcher.job set started_at = now() - make_interval(secs => %s) where id = %s"
        conn.execute(late, [60 + ORPHAN_AFTER_S + 1, overdue])
        conn.execute(late, [60 + ORPHAN_AFTER_S - 5, timely])
        for replica in (owner, other):
            conn.execute(f"listen dispatcher_replica_{replica}".encode())
        observer.leads = False
        observer.rescuer.look()
        assert not list(conn.notifies(timeout=0.2)), "a standby asks nobody"
        observer.leads = True
        observer.clock.now += 10 * ORPHAN_AFTER_S
        observer.rescuer.look()
        heard = [(note.channel, note.payload) for note in conn.notifies(timeout=0.2)]
    assert heard == [(f"dispatcher_replica_{owner}", "check")]
    assert [job(conn, id)[0] for id in (overdue, timely)] == ["running", "running"]


# Proof of death on the same host


SLEEPER = "import sys; print(flush=True); sys.stdin.read()"


@contextlib.contextmanager
def process_with(identity: Identity, *, holds_lock: bool = False) -> Iterator[tuple[subprocess.Popen[bytes], Process]]:
    """A living process, as a replica would have registered it."""

    fds = (identity.lock_fd,) if holds_lock else ()
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=fds
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        yield process, dataclasses.replace(identity.process, pid=process.pid, start=fields[19])
        process.kill()


def test_a_proven_death_frees_the_jobs_at_once(conn: Connection, observer: Observer, tmp_path: Path) -> None:
    identity = Identity(tmp_path)
    with process_with(identity) as (process, registered):
        owner = register(conn, process=registered)
        id = running_job(conn, owner)
        os.close(identity.lock_fd)  # its own hold on the lock file ends with it
        observer.rescuer.look()
        assert job(conn, id)[0] == "running", "it lives"
        process.kill()
        process.wait()
        observer.rescuer.look()
    assert job(conn, id)[0] == "scheduled"
    assert observer.rescued("dead") == 1


def test_a_frozen_owner_is_killed_and_seen_gone_before_its_jobs_are_taken(
    conn: Connection, observer: Observer, tmp_path: Path
) -> None:
    identity = Identity(tmp_path)
    with process_with(identity) as (process, registered):
        owner = register(conn, process=registered)
        id = running_job(conn, owner)
        observer.rescuer.look()
        observer.clock.now += ORPHAN_AFTER_S + 1
        observer.rescuer.look()
        assert job(conn, id)[0] == "running", "it may not be gone yet"
        assert process.wait(5) == -9
        observer.rescuer.look()
    assert job(conn, id)[0] == "scheduled"
    identity.close()


def test_a_process_of_another_host_is_never_touched(
    conn: Connection, observer: Observer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    identity = Identity(tmp_path)
    with process_with(identity) as (process, registered):
        owner = register(conn, process=dataclasses.replace(registered, boot_id="another"))
        running_job(conn, owner)
        observer.rescuer.look()
        observer.clock.now += ORPHAN_AFTER_S + 1
        observer.rescuer.look()
        assert process.poll() is None
    identity.close()


def test_a_replica_of_the_database_that_this_one_was_copied_from_is_not_killed(
    conn: Connection, observer: Observer, tmp_path: Path
) -> None:
    """A copy has the rows of the original's replicas, some of which run on this host, and is not where they live."""
    identity = Identity(tmp_path)
    with process_with(identity) as (process, registered):
        owner = register(conn, process=registered)
        conn.execute(
            "update dispatcher.replica set server_started = server_started - interval '1 day' where id = %s",
            [owner],
        )
        id = running_job(conn, owner)
        observer.rescuer.look()
        observer.clock.now += ORPHAN_AFTER_S + 1
        observer.rescuer.look()
        assert process.poll() is None
        assert job(conn, id)[0] == "scheduled", "in the copy nobody runs it"
    identity.close()


def test_who_is_told_to_stop_does_not_look_again(dsn: str, conn: Connection) -> None:
    """The stop and its wake-up may come between two steps: the wake-up is cleared then, and the stop is seen."""
    stop = threading.Event()
    with watching(dsn, register(conn), stop=stop) as observer:
        stop.set()
        observer.rescuer.wake()
        step = threading.Thread(target=observer.rescuer.step, daemon=True)
        step.start()
        step.join(1.0)
        ended = not step.is_alive()
        observer.rescuer.wake()
        step.join()
    assert ended


def test_what_ran_outside_of_a_dead_process_is_left_until_its_fence_has_struck(
    dsn: str, conn: Connection, observer: Observer, tmp_path: Path
) -> None:
    """A task on a Dask worker lives on when its owner is dead, which the owner's death says nothing about."""
    program = "from dispatcher.identity import Identity; import sys, dataclasses, json, pathlib\n"
    program += (
        f"i = Identity(pathlib.Path({str(tmp_path)!r})); print(json.dumps(dataclasses.asdict(i.process)), flush=True)\n"
    )
    owner = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    process = Process(**json.loads(owner.stdout))
    replica = replicas.register_replica(
        conn, lease=1, process=process, version="test", types=["import", "far"], remote_types=["far"]
    )
    here, there = running_job(conn, replica), running_job(conn, replica)
    conn.execute("update dispatcher.job set type = 'far' where id = %s", [there])
    observer.rescuer.look()
    assert job(conn, here)[0] == "scheduled", "its death is proven"
    assert job(conn, there)[0] == "running"
    observer.clock.now += ORPHAN_AFTER_S - 0.1
    observer.rescuer.look()
    assert job(conn, there)[0] == "running"
    observer.clock.now += 0.2
    observer.rescuer.look()
    assert job(conn, there)[0] == "scheduled"
    assert not known(conn, replica)
    assert observer.rescued("dead") == 2
