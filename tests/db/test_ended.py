"""Ended jobs by a filter: counted, retried, purged; who is passed by."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from dispatcher.async_client import AsyncClient
from dispatcher.client import Client
from dispatcher.errors import InvalidOption
from dispatcher.job import State
from dispatcher.queries.ended import Purged, Retried
from tests.db.front_door import end, publish
from tests.db.linking import Linking
from tests.db.running import open_transaction, state, value

Conn = psycopg.Connection[Any]
EVERY = ["failed", "partial", "canceled", "succeeded"]


@pytest.fixture
def client(dsn: str, conn: Conn) -> Iterator[Client]:
    publish(conn)
    with Client(dsn) as client:
        yield client


def add(
    conn: Conn,
    *,
    type: str = "any",
    tenant: str = "",
    state: str = "failed",
    kinds: tuple[str, ...] = ("exception",),
    message: str = "no luck",
    hours_ago: float = 0,
    count: int = 1,
    **columns: Any,
) -> list[int]:
    """Jobs that ended so; `kinds` of their errors, the last one last."""
    errors = json.dumps([{"attempt": at, "kind": kind, "message": message} for at, kind in enumerate(kinds, 1)])
    names = "".join(f", {name}" for name in columns)
    values = "".join(", %s" for _ in columns)
    rows = conn.execute(
        f"insert into dispatcher.job (type, tenant, state, errors, finished_at, payload, attempt, failures{names})"
        f" select %s, %s, %s, %s, now() - make_interval(hours => 1) * %s, '{{}}', 1, 1{values}"
        " from generate_series(1, %s) returning id".encode(),
        (type, tenant, state, errors if kinds else None, hours_ago, *columns.values(), count),
    )
    return [id for (id,) in rows.fetchall()]


def sql(conn: Conn, call: str, filters: Any) -> tuple[Any, ...]:
    """A call of one of the functions with a filter."""
    row = conn.execute(f"select * from dispatcher.{call}(%s::jsonb)".encode(), (json.dumps(filters),)).fetchone()
    assert row is not None
    return tuple(row)


def picture(conn: Conn) -> list[Any]:
    """All jobs, to see that nothing was written."""
    return conn.execute("select id, state, xmin::text from dispatcher.job order by id").fetchall()


FILTERS: list[tuple[dict[str, Any], list[str]]] = [
    ({"state": "failed"}, ["timed_out", "failed", "other", "tenant", "old"]),
    ({"all": True}, ["timed_out", "failed", "other", "tenant", "old"]),
    ({"type": "import"}, ["other"]),
    ({"type": "nobody's"}, []),
    ({"tenant": "t"}, ["tenant"]),
    ({"state": ["partial", "canceled"]}, ["partial", "canceled"]),
    ({"state": ["failed", "partial", "canceled"], "kind": "item"}, ["partial"]),
    ({"kind": "timeout"}, ["timed_out"]),  # of the last error, whatever came before
    ({"kind": "exception"}, ["failed", "other", "tenant", "old"]),
    ({"message": "luck at"}, ["other"]),
    ({"message": "%"}, []),
    ({"since": 3600}, ["timed_out", "failed", "other", "tenant"]),
    ({"until": "2h"}, ["old"]),
    ({"since": "1 day", "until": "1h30min"}, ["old"]),
    ({"state": "failed", "limit": 2}, ["timed_out", "failed"]),
    ({"state": "failed", "tenant": None, "limit": 1000}, ["timed_out", "failed", "other", "tenant", "old"]),
]


@pytest.fixture
def named(conn: Conn) -> dict[str, int]:
    """One job of each sort; the oldest first."""
    publish(conn)
    sorts: dict[str, dict[str, Any]] = {
        "old": {"hours_ago": 5},
        "succeeded": {"state": "succeeded", "kinds": ()},
        "canceled": {"state": "canceled", "kinds": ()},
        "partial": {"state": "partial", "kinds": ("item",)},
        "tenant": {"tenant": "t"},
        "other": {"type": "import", "message": "no luck at all"},
        "failed": {"kinds": ("timeout", "exception")},
        "timed_out": {"kinds": ("exception", "timeout")},
        "pending": {"state": "pending", "kinds": ("exception",)},
    }
    return {name: add(conn, **columns)[0] for name, columns in sorts.items()}


@pytest.mark.parametrize(("filters", "names"), FILTERS)
def test_preview_counts_what_is_then_retried(
    conn: Conn, named: dict[str, int], filters: dict[str, Any], names: list[str]
) -> None:
    before = picture(conn)
    assert sql(conn, "count_ended", filters) == (len(names),)
    assert sql(conn, "retry_where", filters) == (len(names), 0)
    rows = conn.execute(
        "select id from dispatcher.job where state = 'pending' and attempt = 1 and failures = 0 order by id desc"
    )
    assert [id for (id,) in rows] == [named[name] for name in names]
    touched = {named[name] for name in names}
    assert [row for row in picture(conn) if row[0] not in touched] == [row for row in before if row[0] not in touched]


@pytest.mark.parametrize(
    ("filters", "names"),
    [*FILTERS, ({"state": "succeeded"}, ["succeeded"]), ({"state": EVERY, "limit": 1}, ["timed_out"])],
)
def test_preview_counts_what_is_then_purged(
    conn: Conn, named: dict[str, int], filters: dict[str, Any], names: list[str]
) -> None:
    assert sql(conn, "count_ended", filters) == (len(names),)
    assert sql(conn, "purge", filters) == (len(names), 0)
    left = {id for id, *_ in picture(conn)}
    assert set(named.values()) - left == {named[name] for name in names}


@pytest.mark.parametrize(
    ("filters", "told"),
    [
        ({}, 'the filter is empty: give type, tenant, state, kind, message, since or until, or "all": true'),
        ({"type": None, "limit": 5}, "the filter is empty"),
        ({"all": False}, "the filter is empty"),
        ([], "the filter must be a JSON object"),
        (None, "the filter must be a JSON object"),
        ({"state": "failed", "typ": "any"}, "unknown filter 'typ'; known filters: type, tenant, state, kind"),
        ({"state": "pending"}, "filter 'state' must be one or several of failed, partial, canceled"),
        ({"state": []}, "filter 'state' must be one or several of"),
        ({"state": [None]}, "filter 'state' must be one or several of"),
        ({"state": {"failed": 1}}, "filter 'state' must be one or several of"),
        ({"type": 5}, "filter 'type' must be a text of 1 to 200 characters; it is 5"),
        ({"kind": ""}, "filter 'kind' must be a text of 1 to 200 characters"),
        ({"message": "x" * 201}, "filter 'message' must be a text of 1 to 200 characters"),
        ({"since": "2030-01-31T12:00:00"}, "filter 'since' must be a time with its zone"),
        ({"since": "2030-02-31T12:00:00Z"}, "filter 'since' must be a time with its zone"),
        ({"until": "yesterday"}, "filter 'until' must be a time with its zone"),
        ({"until": "-2h"}, "filter 'until' must be a time with its zone"),
        ({"until": " -2h"}, "filter 'until' must be a time with its zone"),
        ({"until": "7 days ago"}, "filter 'until' must be a time with its zone"),
        ({"until": "P-7D"}, "filter 'until' must be a time with its zone"),
        ({"until": "1 day -30 days"}, "filter 'until' must be a time with its zone"),
        ({"until": "2030-01-31"}, "filter 'until' must be a time with its zone"),
        ({"until": -5}, "filter 'until' must be a time with its zone"),
        ({"until": "9999 years"}, "filter 'until' must be a time with its zone"),
        ({"until": 1e300}, "filter 'until' must be a time with its zone"),
        ({"until": True}, "filter 'until' must be a time with its zone"),
        ({"since": "1h", "until": "2h"}, "filter 'since' must be before 'until'"),
        ({"all": True, "limit": 0}, "filter 'limit' must be a whole number from 1; it is 0"),
        ({"all": True, "limit": 1.5}, "filter 'limit' must be a whole number from 1"),
        ({"all": True, "limit": "5"}, "filter 'limit' must be a whole number from 1"),
        ({"all": "yes"}, "filter 'all' must be true or false"),
    ],
)
def test_bad_filter_is_one_line_and_nothing_is_written(
    conn: Conn, named: dict[str, int], filters: Any, told: str
) -> None:
    before = picture(conn)
    for call in ("retry_where", "purge"):
        with pytest.raises(psycopg.Error) as caught:
            sql(conn, call, filters)
        assert caught.value.sqlstate == "DJ004"
        assert str(caught.value.diag.message_primary).startswith(told)
        assert "\n" not in str(caught.value.diag.message_primary)
    assert picture(conn) == before


def test_succeeded_jobs_are_not_run_again(client: Client, conn: Conn) -> None:
    (id,) = add(conn, state="succeeded")
    with pytest.raises(InvalidOption, match="must be one or several of failed, partial, canceled; it is"):
        client.retry_where(state="succeeded")
    assert client.retry_where(all=True) == Retried(0, 0)
    assert state(conn, id) == "succeeded"


def test_retried_job_is_as_one_retried_by_its_id(client: Client, conn: Conn) -> None:
    one, other = add(conn, count=2, cancel_requested=True, timed_out=True, progress=50, result_url="file:x", owner=3)
    client.retry(one)
    assert client.retry_where(type="any", limit=5) == Retried(1, 0)
    columns = (
        "state, failures, cancel_requested, timed_out, started_at, finished_at, owner, progress, result_url, attempt"
    )
    rows = conn.execute(f"select {columns} from dispatcher.job where id in ({one}, {other})".encode()).fetchall()
    assert rows[0] == rows[1]
    assert value(conn, "select run_at is not null from dispatcher.job where id = %s", other)


def test_many_steps_leave_nothing_out(client: Client, conn: Conn) -> None:
    add(conn, count=2_500)
    ids = add(conn, count=1_500, kinds=("timeout",))
    add(conn, count=2_500)
    assert client.count_ended() == 6_500
    assert client.retry_where(kind="timeout") == Retried(1_500, 0)
    assert value(conn, "select count(*) from dispatcher.job where state = 'pending' and id = any(%s)", ids) == 1_500
    assert sql(conn, "retry_where", {"all": True, "limit": 2_501}) == (2_501, 0)
    assert client.purge(state="failed", limit=2_001) == Purged(2_001, 0)
    assert client.purge(all=True) == Purged(498, 0)
    assert value(conn, "select count(*) from dispatcher.job") == 4_001


def test_few_among_many_are_found_behind_the_first_step(client: Client, conn: Conn) -> None:
    (old,) = add(conn, type="import", state="succeeded")
    (failed,) = add(conn, type="import")
    add(conn, count=45_000, state="succeeded", kinds=())
    add(conn, count=45_000)
    assert client.count_ended(type="import", state=EVERY) == 2
    assert client.retry_where(type="import") == Retried(1, 0)
    assert client.purge(type="import", state="succeeded") == Purged(1, 0)
    assert state(conn, failed) == "pending"
    assert value(conn, "select count(*) from dispatcher.job where id = %s", old) == 0


def test_steps_are_each_committed_and_those_of_a_caller_are_not(client: Client, dsn: str, conn: Conn) -> None:
    add(conn, count=1_200)
    with psycopg.connect(dsn) as own:
        assert client.retry_where(conn=own, all=True) == Retried(1_200, 0)
        own.rollback()
    assert client.count_ended() == 1_200
    with psycopg.connect(dsn) as own:
        assert client.purge(conn=own, all=True) == Purged(1_200, 0)
        own.rollback()
    client.retry_where(all=True)
    transactions = value(conn, "select count(distinct run_at) from dispatcher.job where state = 'pending'")
    assert transactions == 2


def test_how_long_ago_is_counted_once_for_all_steps(client: Client, conn: Conn) -> None:
    for id in client.enqueue_many("any", [{}] * 1001):
        end(conn, id, "failed")
    sent: list[str] = []
    ask = client._ask

    def noted(query: Any) -> Any:
        if query.name == "retry_some":
            sent.append(query.params["filter"])
        return ask(query)

    client._ask = noted  # type: ignore[method-assign]
    assert client.retry_where(since="1h", until=0) == (1001, 0)
    assert len(sent) == 2
    assert len(set(sent)) == 1
    assert datetime.fromisoformat(json.loads(sent[0])["until"]) <= datetime.now(UTC)


def test_locked_rows_are_passed_by(client: Client, dsn: str, conn: Conn) -> None:
    ids = add(conn, count=3)
    conn.execute("set lock_timeout = '5s'")
    lock = f"select from dispatcher.job where id = {ids[1]} for update"
    with open_transaction(dsn, lock):
        assert sql(conn, "retry_where", {"all": True, "limit": 2}) == (2, 1)
    assert [state(conn, id) for id in ids] == ["pending", "failed", "pending"]
    with open_transaction(dsn, lock):
        assert client.purge(all=True) == Purged(0, 1)
    assert client.purge(all=True) == Purged(1, 0)


def test_child_of_a_locked_batch_is_passed_by(client: Client, dsn: str, conn: Conn) -> None:
    (batch,) = add(conn, state="partial", kinds=())
    child, other = add(conn, parent_id=batch), add(conn)
    conn.execute("insert into dispatcher.batch (job_id, total, ended_at) values (%s, 1, now())", (batch,))
    with open_transaction(dsn, f"select from dispatcher.batch where job_id = {batch} for update"):
        assert client.retry_where(state="failed") == Retried(1, 1)
    assert (state(conn, child[0]), state(conn, other[0])) == ("failed", "pending")


def test_job_whose_unique_key_is_taken_is_passed_by(client: Client, conn: Conn) -> None:
    older, newer = add(conn, count=2, unique_key="k")
    add(conn, count=2)
    running = client.enqueue("any", unique_key="k")
    assert client.retry_where(type="any") == Retried(2, 2)
    client.cancel(running)
    assert client.retry_where(state="failed") == Retried(1, 1)  # of two with one key the newer
    assert (state(conn, older), state(conn, newer)) == ("failed", "pending")


def test_failed_children_of_one_batch_run_again_in_good_time(client: Client, conn: Conn) -> None:
    """Each would write the batch's row, and every look at that row would meet all that were written before."""
    (batch,) = add(conn, type="batch", kinds=())
    conn.execute(
        "insert into dispatcher.batch (job_id, total, failed, ended_at) values (%s, 5001, 5001, now())", (batch,)
    )
    children = add(conn, parent_id=batch, count=5_001)
    conn.execute("set statement_timeout = '10s'")
    assert sql(conn, "retry_where", {"type": "any"}) == (5_001, 0)
    assert state(conn, batch) == "running"
    counts = client.get_batch(batch)
    assert (counts.pending, counts.failed, counts.total) == (5_001, 0, 5_001)
    assert value(conn, "select count(*) from dispatcher.job where state = 'pending'") == len(children)


def test_locked_child_is_passed_by_and_its_siblings_are_not(client: Client, dsn: str, conn: Conn) -> None:
    (batch,) = add(conn, state="partial", kinds=(), type="batch")
    children = add(conn, parent_id=batch, count=4)
    conn.execute("insert into dispatcher.batch (job_id, total, failed, ended_at) values (%s, 4, 4, now())", (batch,))
    after = client.enqueue("any", after=children[3], on_failure="run")
    lock = f"select from dispatcher.job where id in ({children[0]}, {after}) for update"
    with open_transaction(dsn, lock):
        assert client.retry_where(state="failed") == Retried(2, 2)
    assert [state(conn, id) for id in children] == ["failed", "pending", "pending", "failed"]
    assert (client.get_batch(batch).failed, client.get_batch(batch).pending) == (2, 2)


def test_retry_waits_for_no_lock_of_what_belongs_to_the_job(client: Client, dsn: str, conn: Conn) -> None:
    [keyed], [before, alone] = add(conn, unique_key="k"), add(conn, count=2)
    after = client.enqueue("any", after=before, on_failure="run")
    batch = client.batch("any", [{}])
    conn.execute("update dispatcher.job set state = 'failed', finished_at = now() where parent_id = %s", (batch,))
    conn.execute("update dispatcher.job set state = 'failed', finished_at = now() where id = %s", (batch,))
    conn.execute("update dispatcher.batch set failed = 1, ended_at = now() where job_id = %s", (batch,))
    conn.execute("delete from dispatcher.follow_up")
    conn.execute("set statement_timeout = '5s'")
    locks: tuple[str, str] = (
        "select dispatcher.enqueue('any', '{}', '{\"unique_key\": \"k\"}')",
        f"select from dispatcher.job where parent_id = {batch} or id = {after} for update",
    )
    with open_transaction(dsn, ";".join(locks)):
        assert sql(conn, "retry_where", {"all": True}) == (1, 4)
    assert [state(conn, id) for id in (keyed, before, alone, batch)] == ["failed", "failed", "pending", "failed"]


def test_retry_beside_an_enqueue_of_the_same_keys_ends_neither(client: Client, dsn: str, conn: Conn) -> None:
    """The one goes from job to job, the other from key to key."""
    older, newer = (add(conn, unique_key=key)[0] for key in ("a", "b"))
    with psycopg.connect(dsn) as own, psycopg.connect(dsn) as enqueuing:
        client.enqueue("any", unique_key="a", conn=enqueuing)
        assert client.retry_where(all=True, conn=own) == Retried(1, 1)
        own.commit()
        assert client.enqueue_unique("any", unique_key="b", conn=enqueuing) == (newer, False)
    assert (state(conn, older), state(conn, newer)) == ("failed", "pending")


def test_batch_that_matches_beside_its_children_runs_again_with_them(client: Client, dsn: str, conn: Conn) -> None:
    batches = [client.batch("any", [{}] * count) for count in (1, 2)]
    linking = Linking(dsn)
    linking.run(State.FAILED, type="any")
    linking.close()
    assert client.count_ended(state="failed") == 5
    assert client.retry_where(state="failed") == Retried(5, 0), "nobody held a lock, and nothing has a key"
    assert [state(conn, id) for id in batches] == ["running", "running"]


def test_purge_spares_what_unfinished_jobs_may_read(client: Client, conn: Conn) -> None:
    read, done, _free = add(conn, count=3, state="succeeded")
    for after, waiting in ((read, "pending"), (done, "succeeded")):
        (job,) = add(conn, type="import", state=waiting)
        conn.execute(
            "insert into dispatcher.dependency (job_id, after_id, on_failure, outcome)"
            " values (%s, %s, 'run', 'succeeded')",
            (job, after),
        )
    assert client.purge(type="any", state="succeeded") == Purged(2, 1)
    assert value(conn, "select array_agg(id) from dispatcher.job where type = 'any'") == [read]


def test_purge_spares_the_children_of_an_open_batch(client: Client, conn: Conn) -> None:
    for ended in (False, True):
        (batch,) = add(conn, state="succeeded" if ended else "running", type="import", kinds=())
        add(conn, parent_id=batch, tenant="ended" if ended else "open")
        conn.execute(
            "insert into dispatcher.batch (job_id, total, ended_at) values (%s, 1, case when %s then now() end)",
            (batch, ended),
        )
    assert client.purge(type="any") == Purged(1, 1)
    assert value(conn, "select array_agg(tenant) from dispatcher.job where type = 'any'") == ["open"]


def test_purge_beside_a_retry_locks_nobody_out(client: Client, dsn: str, conn: Conn) -> None:
    """Who retries a job locks its batch's row first; a purge has the job, and would want that row."""
    [parent] = add(conn, type="batch")
    conn.execute("insert into dispatcher.batch (job_id, total, failed, ended_at) values (%s, 2, 2, now())", (parent,))
    child, _ = add(conn, parent_id=parent, count=2)
    with psycopg.connect(dsn) as own:
        own.execute("select from dispatcher.batch where job_id = %s for no key update", (parent,))
        assert client.purge(all=True) == Purged(2, 1)
        with pytest.raises(psycopg.Error, match=f"there is no job {child}"):
            own.execute("select dispatcher.retry(%s)", (child,))
    assert client.purge(all=True) == Purged(1, 0)


def test_purge_never_takes_an_unfinished_job(client: Client, conn: Conn) -> None:
    for unfinished in ("pending", "running", "blocked"):
        add(conn, state=unfinished)
    add(conn, state="scheduled", run_at=datetime.now(UTC))
    before = picture(conn)
    assert client.purge(state=EVERY, since=timedelta(days=1)) == Purged(0, 0)
    assert picture(conn) == before


def test_preview_may_be_of_everything(client: Client, conn: Conn) -> None:
    add(conn, count=3)
    assert client.count_ended() == 3
    assert value(conn, "select dispatcher.count_ended()") == 3
    assert client.count_ended(state=EVERY, limit=2) == 2


async def same(client: AsyncClient) -> tuple[int, Retried, Purged]:
    """The async client's."""
    async with client:
        return await client.count_ended(all=True), await client.retry_where(tenant="t"), await client.purge(all=True)


def test_async_client_does_the_same(dsn: str, conn: Conn) -> None:
    publish(conn)
    add(conn, count=2)
    add(conn, tenant="t")
    assert asyncio.run(same(AsyncClient(dsn))) == (3, Retried(1, 0), Purged(2, 0))


def test_functions_are_not_for_everybody(conn: Conn) -> None:
    for call in (
        "count_ended(jsonb)",
        "retry_where(jsonb)",
        "retry_step(jsonb, bigint, bigint)",
        "purge(jsonb)",
        "purge_step(jsonb, bigint, bigint)",
    ):
        assert not value(conn, "select has_function_privilege('public', 'dispatcher.' || %s, 'execute')", call)
