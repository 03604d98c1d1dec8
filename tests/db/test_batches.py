"""Batches: parents that end once, with exact counts, whatever happens at the same time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import psycopg
import pytest

from dispatcher.db import Connection
from dispatcher.job import State
from dispatcher.queries import upkeep
from dispatcher.services.linker import BUSY_PAUSE_S
from tests.db.contenders import Clock
from tests.db.linking import Linking, batch, children, counts, in_threads
from tests.db.running import enqueue, job, open_transaction, publish, state, value

FINAL = [State.SUCCEEDED, State.PARTIAL, State.FAILED, State.CANCELED]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def linking(dsn: str, conn: Connection, clock: Clock) -> Iterator[Linking]:
    publish(conn)
    linking = Linking(dsn, clock=clock)
    yield linking
    linking.close()


@pytest.mark.parametrize(
    ("ends", "state_of_batch"),
    [
        ("sss", "succeeded"),
        ("ssf", "partial"),
        ("spp", "partial"),
        ("ppf", "partial"),
        ("fff", "failed"),
        ("fcf", "failed"),
        ("ccc", "canceled"),
        ("scs", "partial"),
    ],
)
def test_batch_ends_with_its_last_child(conn: Connection, linking: Linking, ends: str, state_of_batch: str) -> None:
    parent = batch(conn, 3)
    assert counts(conn, parent) == {"pending": 3}
    claimed = linking.claim()
    assert counts(conn, parent) == {"running": 3}
    letters = {"s": State.SUCCEEDED, "p": State.PARTIAL, "f": State.FAILED, "c": State.CANCELED}
    for child, letter in zip(claimed.values(), ends, strict=True):
        linking.link()
        assert state(conn, parent) == State.RUNNING
        linking.end(child, letters[letter])
        counts(conn, parent)  # exact before the mark is worked off, too
    linking.link()
    ended = job(conn, parent)
    assert (ended["state"], ended["type"]) == (state_of_batch, "batch")
    final = counts(conn, parent)
    assert ended["result"] == {"total": 3} | {str(one): final.get(one, 0) for one in FINAL}
    assert value(conn, "select count(*) from dispatcher.follow_up") == 0
    assert linking.metrics.registry.get_sample_value("dispatcher_batches_ended_total", {"state": state_of_batch}) == 1


def test_last_two_children_that_end_at_once_end_the_batch_once(dsn: str, conn: Connection, linking: Linking) -> None:
    """Two replicas' completers, and the linkers of a former leader and of the next one, all at the same instant."""
    others = [Linking(dsn), Linking(dsn)]
    for _ in range(20):
        parent = batch(conn, 2)
        first, second = linking.claim().values()
        in_threads(
            partial(others[0].end, first),
            partial(others[1].end, second),
            others[0].link,
            others[1].link,
        )
        linking.link()
        assert state(conn, parent) == State.SUCCEEDED
        assert counts(conn, parent) == {"succeeded": 2}
    ended = [
        each.metrics.registry.get_sample_value("dispatcher_batches_ended_total", {"state": "succeeded"}) or 0
        for each in (linking, *others)
    ]
    assert sum(ended) == 20
    for other in others:
        other.close()


def test_marks_wait_while_a_leader_before_works_some_off(dsn: str, conn: Connection, linking: Linking) -> None:
    parent = batch(conn, 1)
    with open_transaction(dsn, "select pg_advisory_xact_lock(dispatcher.follow_lock(), 0)"):
        [child] = linking.claim().values()
        linking.end(child)
        assert linking.linker.turn() == BUSY_PAUSE_S
        assert state(conn, parent) == State.RUNNING
        assert value(conn, "select count(*) from dispatcher.follow_up") == 1
    linking.link()
    assert state(conn, parent) == State.SUCCEEDED


def test_mark_committed_late_is_found(dsn: str, conn: Connection, linking: Linking) -> None:
    """A mark's number is drawn before its commit: later marks are taken, and it must not be forgotten behind them."""
    parent = batch(conn, 3)
    first, *rest = linking.claim().values()
    with open_transaction(
        dsn, f"update dispatcher.job set state = 'succeeded', finished_at = now() where id = {first.id}"
    ) as late:
        for child in rest:
            linking.end(child)
        linking.link()
        assert state(conn, parent) == State.RUNNING
        late.commit()
    linking.link()
    assert state(conn, parent) == State.SUCCEEDED


def test_mark_committed_late_is_found_while_others_keep_coming(
    dsn: str, conn: Connection, linking: Linking, clock: Clock
) -> None:
    """Where jobs end all day there is no moment in which all marks have been worked off."""
    parent = batch(conn, 20)
    first, *rest = linking.claim().values()
    waiting = enqueue(conn, after=first.id)
    linking.link()
    with open_transaction(
        dsn, f"update dispatcher.job set state = 'succeeded', finished_at = now() where id = {first.id}"
    ) as late:
        linking.end(rest.pop())
        assert linking.linker.turn() == 0.0
        late.commit()
    for _ in range(5):
        clock.now += 0.3
        linking.end(rest.pop())
        assert linking.linker.turn() == 0.0
    assert state(conn, waiting) == State.PENDING
    assert counts(conn, parent) == {"running": 13, "succeeded": 7}


def test_linker_that_dies_in_the_middle_has_done_nothing(
    dsn: str, conn: Connection, linking: Linking, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = batch(conn, 2)
    waits = enqueue(conn, after=parent)
    for child in linking.claim().values():
        linking.end(child)

    def die(_conn: Connection) -> None:
        raise psycopg.OperationalError("the connection is lost")

    with monkeypatch.context() as patch:
        patch.setattr("dispatcher.queries.marks.wake_leaders", die)  # the last statement before the commit
        with pytest.raises(psycopg.OperationalError):
            linking.linker.turn()
    assert (state(conn, parent), counts(conn, parent)) == (State.RUNNING, {"succeeded": 2})
    fresh = Linking(dsn)
    fresh.link()
    assert (state(conn, parent), counts(conn, parent)) == (State.SUCCEEDED, {"succeeded": 2})
    assert state(conn, waits) == State.PENDING
    fresh.close()


def test_batch_row_that_a_user_holds_is_passed_by(dsn: str, conn: Connection, linking: Linking) -> None:
    parent, other = batch(conn, 1), batch(conn, 1)
    with open_transaction(dsn, f"select from dispatcher.batch where job_id = {parent} for update") as held:
        linking.run()
        assert state(conn, other) == State.SUCCEEDED  # nobody waits for the held one
        assert state(conn, parent) == State.RUNNING
        assert counts(conn, parent) == {"succeeded": 1}
        held.rollback()
    linking.link()
    assert state(conn, parent) == State.SUCCEEDED
    parent = batch(conn, 1)
    with open_transaction(dsn, f"select from dispatcher.job where id = {parent} for update") as held:
        linking.run()
        assert state(conn, parent) == State.RUNNING
        held.rollback()
    linking.link()
    assert (state(conn, parent), counts(conn, parent)) == (State.SUCCEEDED, {"succeeded": 1})


def test_cancel_stops_what_is_open(conn: Connection, linking: Linking) -> None:
    parent = batch(conn, 5)
    done, runs, *_ = linking.claim(take=2).values()
    linking.end(done)
    later = enqueue(conn, parent=parent, delay="1h")
    waits = enqueue(conn, parent=parent, after=runs.id)
    assert value(conn, "select dispatcher.cancel(%s)", parent) == "running"
    assert counts(conn, parent) == {"succeeded": 1, "running": 1, "canceled": 5}
    assert [state(conn, id) for id in (later, waits)] == ["canceled"] * 2
    assert job(conn, runs.id)["cancel_requested"]
    linking.link()
    assert state(conn, parent) == State.RUNNING  # one of its jobs has yet to stop
    linking.end(runs, State.CANCELED)
    linking.link()
    assert state(conn, parent) == State.CANCELED
    assert value(conn, "select dispatcher.cancel(%s)", parent) == "canceled"


def test_batch_that_is_retried_while_it_is_being_canceled_is_open_again(conn: Connection, linking: Linking) -> None:
    parent = batch(conn, 3)
    (runs,) = linking.claim(take=1).values()
    conn.execute("select dispatcher.cancel(%s)", (parent,))
    linking.link()
    assert value(conn, "select dispatcher.retry(%s)", parent) == "running"
    assert not value(conn, "select cancel_requested from dispatcher.batches where id = %s", parent)
    assert not job(conn, parent)["cancel_requested"]
    enqueue(conn, parent=parent)
    linking.end(runs, State.CANCELED)  # it was asked to stop before
    linking.run()
    assert (state(conn, parent), counts(conn, parent)) == (State.PARTIAL, {"canceled": 1, "succeeded": 3})


def test_cancel_beside_claims_leaves_nothing_open(dsn: str, conn: Connection, linking: Linking) -> None:
    """A child may come from pending to running while the batch is canceled: it is asked to stop then."""
    for _ in range(10):
        parent = batch(conn, 200)

        def cancel(parent: int = parent) -> None:
            with psycopg.connect(dsn, autocommit=True) as own:
                own.execute("select dispatcher.cancel(%s)", (parent,))

        _, claimed = in_threads(cancel, lambda: [*linking.claim(take=100).values(), *linking.claim().values()])
        seen = counts(conn, parent)
        assert set(seen) <= {"canceled", "running"}
        asked = value(conn, "select count(*) from dispatcher.job where parent_id = %s and cancel_requested", parent)
        assert asked == seen.get("running", 0)
        for child in claimed:
            linking.end(child, State.CANCELED)
        linking.link()
        assert (state(conn, parent), counts(conn, parent)) == (State.CANCELED, {"canceled": 200})


def test_retry_of_a_batch_runs_its_failed_children(conn: Connection, linking: Linking) -> None:
    parent = batch(conn, 4, callback={"type": "slow", "payload": {"x": 1}})
    (callback,) = conn.execute("select id from dispatcher.job where type = 'slow'").fetchone() or (0,)
    assert state(conn, callback) == State.BLOCKED
    a, b, c, d = linking.claim().values()
    linking.end(a)
    linking.end(b, State.FAILED)
    linking.end(c, State.CANCELED)
    linking.end(d, State.FAILED)
    linking.link()
    assert (state(conn, parent), state(conn, callback)) == (State.PARTIAL, State.PENDING)
    assert linking.run(type="slow") == [callback]
    assert value(conn, "select dispatcher.retry(%s)", parent) == "running"
    assert counts(conn, parent) == {"pending": 3, "succeeded": 1}
    assert job(conn, parent)["finished_at"] is None
    assert linking.run(type="slow") == []
    linking.run()
    assert (state(conn, parent), counts(conn, parent)) == (State.SUCCEEDED, {"succeeded": 4})
    assert len(linking.run(type="slow")) == 1  # it ended again, so there is another callback
    with pytest.raises(psycopg.Error, match=f"batch {parent} has no failed or canceled jobs"):
        conn.execute("select dispatcher.retry(%s)", (parent,))


def test_callback_that_has_not_started_waits_for_the_second_end(conn: Connection, linking: Linking) -> None:
    parent = batch(conn, 1, callback={"type": "slow"})
    linking.run(State.FAILED)
    assert value(conn, "select state from dispatcher.job where type = 'slow'") == State.PENDING
    assert value(conn, "select dispatcher.retry(%s)", parent) == "running"
    assert value(conn, "select state from dispatcher.job where type = 'slow'") == State.BLOCKED
    linking.link()
    assert linking.run(type="slow") == []
    linking.run()
    assert len(linking.run(type="slow")) == 1
    assert value(conn, "select count(*) from dispatcher.job where type = 'slow'") == 1


def test_callback_that_is_not_due_yet_waits_for_the_second_end(conn: Connection, linking: Linking) -> None:
    parent = batch(conn, 1, callback={"type": "slow", "options": {"delay": "1h"}})
    linking.run(State.FAILED)
    assert value(conn, "select state from dispatcher.job where type = 'slow'") == State.SCHEDULED
    assert value(conn, "select dispatcher.retry(%s)", parent) == "running"
    linking.run()
    assert value(conn, "select array_agg(state) from dispatcher.job where type = 'slow'") == ["scheduled"]


def test_retry_of_a_child_opens_its_batch_again(conn: Connection, linking: Linking) -> None:
    parent = batch(conn, 2)
    a, b = linking.claim().values()
    linking.end(a)
    linking.end(b, State.FAILED)
    assert value(conn, "select dispatcher.retry(%s)", b.id) == "pending"  # before its mark was worked off
    linking.link()
    assert (state(conn, parent), counts(conn, parent)) == (State.RUNNING, {"succeeded": 1, "pending": 1})
    linking.run(State.FAILED)
    assert state(conn, parent) == State.PARTIAL
    assert value(conn, "select dispatcher.retry(%s)", b.id) == "pending"
    assert (state(conn, parent), counts(conn, parent)) == (State.RUNNING, {"succeeded": 1, "pending": 1})
    linking.run()
    assert (state(conn, parent), counts(conn, parent)) == (State.SUCCEEDED, {"succeeded": 2})


def test_retry_beside_the_end_of_the_batch(dsn: str, conn: Connection, linking: Linking) -> None:
    """Whichever comes first: counts stay exact, and the batch ends once the retried child has."""
    for _ in range(20):
        parent = batch(conn, 2)
        a, b = linking.claim().values()
        linking.end(b, State.FAILED)

        def retry(id: int = b.id) -> None:
            with psycopg.connect(dsn, autocommit=True) as own:
                own.execute("select dispatcher.retry(%s)", (id,))

        in_threads(retry, partial(linking.end, a), linking.link)
        linking.link()
        assert (state(conn, parent), counts(conn, parent)) == (State.RUNNING, {"pending": 1, "succeeded": 1})
        linking.run()
        assert (state(conn, parent), counts(conn, parent)) == (State.SUCCEEDED, {"succeeded": 2})


def test_children_join_an_open_batch_only(conn: Connection, linking: Linking) -> None:
    parent = batch(conn, 1, tenant="shop")
    late = enqueue(conn, parent=parent)
    assert job(conn, late)["tenant"] == "shop"
    more = value(
        conn,
        "select array_agg(id) from dispatcher.enqueue_many('quick', '{\"{}\",\"{}\"}', %s::jsonb) id",
        json.dumps({"parent": parent}),
    )
    assert children(conn, parent)[1:] == [late, *more]
    assert len(linking.run(tenant="shop")) == 4
    assert state(conn, parent) == State.SUCCEEDED
    before = value(conn, "select count(*) from dispatcher.job")
    for options, reason in (
        ({"parent": parent}, f"batch {parent} has ended or was canceled"),
        ({"parent": late}, f"job {late} is no batch"),
        ({"parent": 999}, "job 999 is no batch"),
        ({"parent": parent, "tenant": "other"}, f"job {parent} is no batch of tenant 'other'"),
        ({"parent": parent, "unique_key": "k"}, "a job of a batch has no unique key"),
        ({"parent": "x"}, "option 'parent' takes the id of a job"),
        ({"parent": 1.5}, "option 'parent' takes the id of a job"),
    ):
        with pytest.raises(psycopg.Error, match=reason):
            enqueue(conn, **options)
    canceled = batch(conn, 1)
    conn.execute("select dispatcher.cancel(%s)", (canceled,))
    with pytest.raises(psycopg.Error, match="was canceled"):
        enqueue(conn, parent=canceled)
    assert value(conn, "select count(*) from dispatcher.job") == before + 2


def test_child_that_joins_beside_the_end_is_counted_or_refused(dsn: str, conn: Connection, linking: Linking) -> None:
    for _ in range(20):
        parent = batch(conn, 1)
        (only,) = linking.claim().values()
        linking.end(only)

        def join(parent: int = parent) -> int:
            with psycopg.connect(dsn, autocommit=True) as own:
                return enqueue(own, parent=parent)

        joined, _ = in_threads(join, linking.link)
        if isinstance(joined, psycopg.Error):
            assert "has ended" in str(joined)
            assert (state(conn, parent), counts(conn, parent)) == (State.SUCCEEDED, {"succeeded": 1})
        else:
            assert state(conn, parent) == State.RUNNING
            linking.run()
            assert (state(conn, parent), counts(conn, parent)) == (State.SUCCEEDED, {"succeeded": 2})


@pytest.mark.parametrize(
    ("payloads", "options", "reason"),
    [
        ([], {}, "a batch needs at least one job"),
        (["{}", "[]"], {}, "payload 2: the payload must be a JSON object"),
        (["{}"], {"unique_key": "k"}, "do not go with a batch"),
        (["{}"], {"parent": 1}, "do not go with a batch"),
        (["{}"], {"callback": "slow"}, "option 'callback' must be an object"),
        (["{}"], {"callback": {"type": "nix"}}, "callback: unknown job type 'nix'"),
        (["{}"], {"callback": {"type": "slow", "payload": []}}, "callback: the payload must be a JSON object"),
        (["{}"], {"callback": {"type": "slow", "options": {"after": 1}}}, "the options of a callback"),
        (["{}"], {"callback": {"type": "slow", "options": {"priority": "x"}}}, "callback: option 'priority'"),
        (["{}"], {"nix": 1}, "unknown option 'nix'"),
    ],
)
def test_bad_batch_writes_nothing(
    conn: Connection, linking: Linking, payloads: list[str], options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(psycopg.Error, match=reason) as caught:
        conn.execute(
            "select dispatcher.enqueue_batch('quick', %s::jsonb[], %s::jsonb)", (payloads, json.dumps(options))
        )
    assert (caught.value.sqlstate or "").startswith("DJ")
    assert value(conn, "select count(*) from dispatcher.job") == 0
    assert value(conn, "select count(*) from dispatcher.batch") == 0


def test_batch_of_many_in_one_transaction(conn: Connection, linking: Linking) -> None:
    parent = batch(conn, 20_000)
    assert counts(conn, parent) == {"pending": 20_000}
    for _ in range(20):
        claimed = linking.claim()
        with linking.conn.transaction():
            linking.conn.execute(
                "update dispatcher.job set state = 'succeeded', finished_at = now() where id = any(%s)",
                (list(claimed),),
            )
    linking.link()
    assert (state(conn, parent), counts(conn, parent)) == (State.SUCCEEDED, {"succeeded": 20_000})


def test_hundred_thousand_jobs_in_one_transaction(conn: Connection, linking: Linking) -> None:
    parent = batch(conn, 100_000)
    assert counts(conn, parent) == {"pending": 100_000}
    for _ in range(5):
        claimed = linking.claim()
        with linking.conn.transaction():
            linking.conn.execute(
                "update dispatcher.job set state = 'failed', finished_at = now() where id = any(%s)", (list(claimed),)
            )
    assert counts(conn, parent) == {"pending": 95_000, "failed": 5000}
    linking.link()
    assert value(conn, "select dispatcher.retry(%s)", parent) == "running"
    assert counts(conn, parent) == {"pending": 100_000}
    conn.execute("select dispatcher.cancel(%s)", (parent,))
    linking.link()
    assert (state(conn, parent), counts(conn, parent)) == (State.CANCELED, {"canceled": 100_000})


def test_batch_with_options_that_are_null(conn: Connection, linking: Linking) -> None:
    parent = value(conn, "select dispatcher.enqueue_batch('quick', array['{}']::jsonb[], null)")
    assert counts(conn, parent) == {"pending": 1}
    linking.run()
    assert state(conn, parent) == State.SUCCEEDED


def test_open_child_that_somebody_deletes_counts_as_canceled(conn: Connection, linking: Linking) -> None:
    """Nothing else could ever end its batch, not even a cancel."""
    parent = batch(conn, 2)
    gone, _ = children(conn, parent)
    conn.execute("delete from dispatcher.job where id = %s", (gone,))
    row = conn.execute("select total, pending, blocked, canceled from dispatcher.batches").fetchone()
    assert row == (2, 1, 0, 1)
    linking.run()
    assert state(conn, parent) == State.PARTIAL
    conn.execute("delete from dispatcher.job")
    linking.link()
    assert value(conn, "select count(*) from dispatcher.follow_up") == 0


def test_nobody_enqueues_or_executes_the_type_of_batches(conn: Connection, linking: Linking) -> None:
    with pytest.raises(psycopg.Error, match="unknown job type 'batch'"):
        enqueue(conn, "batch")
    parent = batch(conn, 1)
    assert parent not in linking.claim("batch")


def test_child_that_is_pruned_stays_counted(conn: Connection, linking: Linking) -> None:
    parent = batch(conn, 3)
    gone, *_ = linking.run()
    conn.execute("delete from dispatcher.job where id = %s", (gone,))
    row = conn.execute("select total, succeeded from dispatcher.batches where id = %s", (parent,)).fetchone()
    assert row == (3, 3)
    conn.execute("delete from dispatcher.job where id = %s", (parent,))
    assert value(conn, "select count(*) from dispatcher.batch") == 0


def test_blocked_jobs_and_open_batches_are_counted_for_the_metrics(conn: Connection, linking: Linking) -> None:
    parent = batch(conn, 3)
    enqueue(conn, after=parent)
    counted = {(count.type, count.state): count.jobs for count in upkeep.count_jobs(linking.conn)}
    assert counted == {("quick", "pending"): 3, ("quick", "blocked"): 1, ("batch", "running"): 1}
