"""The pruner removes what has ended long ago, page by page, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from dispatcher.sql import statement

from dispatcher.db import Connection
from dispatcher.metrics import Metrics
from dispatcher.services import pruner as pruner_module
from dispatcher.services.pruner import Pruner
from tests.db.linking import batch, children
from tests.db.running import enqueue, open_transaction, publish, session, until, value

DAY = timedelta(days=1)
Make = Callable[..., Pruner]


@pytest.fixture
def make(dsn: str, conn: Connection) -> Iterator[Make]:
    """Makes a pruner; keeps a day of what succeeded, and two weeks of the rest, unless told otherwise."""
    publish(conn)
    made: list[Pruner] = []

    def make(*, leading: bool = True, succeeded: timedelta = DAY, failed: timedelta = 14 * DAY) -> Pruner:
        stop = threading.Event()
        stop.set()  # no pauses
        made.append(
            Pruner(
                open_session=lambda: session(dsn),
                leading=lambda: leading,
                keep_succeeded=succeeded,
                keep_failed=failed,
                metrics=Metrics(),
                stop=stop,
            )
        )
        return made[-1]

    yield make
    for pruner in made:
        pruner.close()


def add(conn: Connection, state: str, ended_days_ago: float, count: int = 1) -> list[int]:
    """Jobs that ended so long ago, and were created an hour before."""
    ended = ended_days_ago * 86400
    query = """insert into dispatcher.job (type, state, payload, run_at, created_at, finished_at)
               select 'quick', %s, '{}', now(), now() - make_interval(secs => %s + 3600),
                      now() - make_interval(secs => %s)
               from generate_series(1, %s) returning id"""
    return [id for (id,) in conn.execute(query, (state, ended, ended, count))]


def left(conn: Connection) -> list[int]:
    return [id for (id,) in conn.execute("select id from dispatcher.job order by id")]


def walk(pruner: Pruner) -> int:
    """A whole walk; how many pages it took."""
    for page in range(1, 1000):
        if pruner.prune_page():
            return page
    raise AssertionError("it does not end")


def test_retention_by_state(conn: Connection, make: Make) -> None:
    gone = add(conn, "succeeded", 1.1)
    kept = add(conn, "succeeded", 0.9)
    for state in ("failed", "partial", "canceled"):
        kept += add(conn, state, 13.9)
        gone += add(conn, state, 14.1)
    walk(make())
    assert left(conn) == sorted(kept)
    assert gone


@pytest.mark.parametrize("state", ["pending", "running", "scheduled", "blocked"])
def test_unfinished_job_is_never_removed(conn: Connection, make: Make, state: str) -> None:
    kept = add(conn, state, 1000)
    walk(make(succeeded=timedelta(0), failed=timedelta(0)))
    assert left(conn) == kept


def test_walk_goes_over_every_page(conn: Connection, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages full of what stays (unfinished, locked, kept longer) do not end it."""
    monkeypatch.setattr(pruner_module, "PAGE", 10)
    kept = add(conn, "pending", 100, 25)
    add(conn, "succeeded", 50, 15)
    kept += add(conn, "failed", 5, 25)
    add(conn, "failed", 30, 15)
    pruner = make()
    assert walk(pruner) >= 8
    assert left(conn) == kept
    add(conn, "succeeded", 50, 5)
    walk(pruner)  # and the next walk begins at the front again
    assert left(conn) == kept


def test_walk_ends_where_all_jobs_are_too_young(conn: Connection, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruner_module, "PAGE", 10)
    add(conn, "succeeded", 2, 10)
    young = add(conn, "succeeded", 0.0, 500)
    assert walk(make()) == 2
    assert left(conn) == young


def test_zero_retention_removes_at_once(conn: Connection, make: Make) -> None:
    add(conn, "succeeded", 0.0, 3)
    add(conn, "failed", 0.0, 3)
    walk(make(succeeded=timedelta(0), failed=timedelta(0)))
    assert left(conn) == []


def test_locked_row_is_spared_until_the_next_walk(dsn: str, conn: Connection, make: Make) -> None:
    ids = add(conn, "failed", 100, 5)
    pruner = make()
    with open_transaction(dsn, f"select from dispatcher.job where id = {ids[2]} for key share"):
        walk(pruner)
        assert left(conn) == [ids[2]]
    walk(pruner)
    assert left(conn) == []


def test_retry_under_way_wins_over_the_pruner(dsn: str, conn: Connection, make: Make) -> None:
    (id,) = add(conn, "failed", 100)
    with open_transaction(dsn, f"select dispatcher.retry({id})") as user:
        walk(make())
        user.commit()
    walk(make())
    assert left(conn) == [id]
    assert value(conn, "select state from dispatcher.job") == "pending"


def test_standby_prunes_nothing(conn: Connection, make: Make) -> None:
    ids = add(conn, "succeeded", 100)
    make(leading=False).step()
    assert left(conn) == ids


def test_ended_session_is_replaced(conn: Connection, make: Make) -> None:
    pruner = make()
    walk(pruner)
    assert pruner._conn is not None
    conn.execute("select pg_terminate_backend(%s)", (pruner._conn.info.backend_pid,))
    add(conn, "succeeded", 100)
    pruner.step()
    pruner._stop.clear()  # it opens a session only while nobody stops it
    walk(pruner)
    assert left(conn) == []


@pytest.mark.parametrize("waits", ["blocked", "scheduled", "pending", "running"])
def test_predecessor_stays_as_long_as_a_job_that_was_promised_its_result_has_not_ended(
    conn: Connection, make: Make, waits: str
) -> None:
    """Its executor may read what ran before it, in its last try as in the first, however long ago that ended."""
    before, other = add(conn, "succeeded", 100, 2)
    after = enqueue(conn, after=[before, other])
    conn.execute("update dispatcher.job set state = %s, run_at = now() where id = %s", (waits, after))
    walk(make())
    assert left(conn) == [before, other, after]
    conn.execute("update dispatcher.job set state = 'succeeded', finished_at = now() where id = %s", (after,))
    walk(make())
    assert left(conn) == [after]


@pytest.mark.parametrize("followed", [False, True])
def test_predecessor_of_a_job_that_was_enqueued_while_the_pruner_looked_stays(
    dsn: str, conn: Connection, make: Make, monkeypatch: pytest.MonkeyPatch, *, followed: bool
) -> None:
    """It was committed after the pruner's look had begun and before it had the row's lock, which then hides nothing."""
    (before,) = add(conn, "succeeded", 100)
    earlier = (
        [enqueue(conn, after=before)] if followed else []
    )  # then the row is only locked, not written, by the next one
    conn.execute("update dispatcher.job set state = 'succeeded', finished_at = now() where id = any(%s)", (earlier,))
    pruner, slowly = make(), "from (select pg_sleep(1.5)) as s, dispatcher.job j where j.id >"
    monkeypatch.setattr(
        "dispatcher.queries.upkeep.statement",
        lambda name: statement(name).replace(b"from dispatcher.job j where j.id >", slowly.encode()),
    )
    looking = threading.Thread(target=pruner.prune_page)
    looking.start()
    until(lambda: value(conn, "select count(*) from pg_stat_activity where wait_event = 'PgSleep'"))
    after = enqueue(conn, after=before)
    looking.join()
    assert left(conn) == [before, *earlier, after]


def test_child_stays_as_long_as_its_batch_is_open(conn: Connection, make: Make) -> None:
    """A retry of the batch, and whoever gathers its results, still need it; afterwards its count survives it."""
    parent = batch(conn, 2)
    ended, runs = children(conn, parent)
    conn.execute(
        "update dispatcher.job set state = 'failed', created_at = now() - interval '30 days',"
        " finished_at = now() - interval '20 days' where id = %s",
        (ended,),
    )
    walk(make())
    assert left(conn) == [parent, ended, runs]
    conn.execute("delete from dispatcher.follow_up")  # as the leader does when it has counted them
    conn.execute("update dispatcher.batch set ended_at = now(), failed = 1, succeeded = 1 where job_id = %s", (parent,))
    conn.execute("update dispatcher.job set state = 'partial', finished_at = now() where id = %s", (parent,))
    walk(make())
    assert left(conn) == [parent, runs]
    assert conn.execute("select total, failed from dispatcher.batches").fetchall() == [(2, 1)]


def test_batch_whose_row_is_held_is_passed_by(conn: Connection, dsn: str, make: Make) -> None:
    """Its row goes with its job: nobody waits for whoever is about to let it run again, and the rest goes."""
    held, free, _ = add(conn, "succeeded", 5, count=3)
    conn.execute("update dispatcher.job set type = 'batch' where id in (%s, %s)", (held, free))
    conn.execute(
        "insert into dispatcher.batch (job_id, total, ended_at) values (%s, 0, now()), (%s, 0, now())", (held, free)
    )
    with open_transaction(dsn, f"select from dispatcher.batch where job_id = {held} for no key update"):
        make().prune_page()
        assert left(conn) == [held]
    make().prune_page()
    assert left(conn) == []
    assert value(conn, "select count(*) from dispatcher.batch") == 0


def test_tallies_go_once_no_window_reaches_them(conn: Connection, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pages, once a minute, and by the leader alone."""
    monkeypatch.setattr(pruner_module, "PAGE", 10)
    conn.execute(
        """
        insert into dispatcher.tally (grain, at, type, succeeded)
        select grain, now() - interval '1 minute' * m, 'quick', m
        from unnest(array['minute', 'hour']) grain, generate_series(0, 1600, 20) m
        """
    )

    def left() -> list[tuple[str, int, int]]:
        query = "select grain, min(succeeded), max(succeeded) from dispatcher.tally group by 1 order by 1"
        return conn.execute(query).fetchall()

    kept = [("hour", 0, 1540), ("minute", 0, 100)]  # up to 26 hours, and to two
    make(leading=False).step()
    assert left() != kept
    pruner = make()
    pages = 1
    while not pruner.prune_tallies():
        pages += 1
    assert 7 <= pages <= 9
    assert left() == kept
    conn.execute("update dispatcher.tally set at = at - interval '1 day' where grain = 'minute'")
    assert pruner.prune_tallies()
    assert left() == kept  # not before a minute has passed
    pruner._tallies_due = 0.0
    pruner.step()
    assert left() == kept[:1]


def test_answers_are_kept_for_a_day(conn: Connection, make: Make) -> None:
    conn.execute("insert into dispatcher.answer (tenant, key, digest) values ('', 'new', ''), ('', 'old', '')")
    conn.execute("update dispatcher.answer set created_at = now() - interval '25 h 1 min' where key = 'old'")
    assert make().prune_answers()
    assert [key for (key,) in conn.execute("select key from dispatcher.answer")] == ["new"]
