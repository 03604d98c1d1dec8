"""Lists of jobs: each way of finding them gives what a look at every job would give, page by page."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from dispatcher.client import Client
from dispatcher.errors import InvalidOption, WrongState
from dispatcher.job import JobInfo, State
from dispatcher.queries import listing
from tests.db.front_door import publish
from tests.db.running import value

Conn = psycopg.Connection[Any]
NOW = datetime.now(UTC)
BATCHES = (1, 2)  # the first jobs of all; the second batch is open

QUESTIONS: list[dict[str, Any]] = [
    {},
    *({"state": state.value} for state in State),
    {"state": ["failed", "canceled"]},
    {"state": ["failed", "succeeded"]},
    {"state": ["pending", "blocked"]},
    {"type": "import"},
    {"tenant": "t1"},
    {"type": "import", "tenant": "t2"},
    {"kind": "timeout"},
    {"since": NOW - timedelta(hours=30)},
    {"until": NOW - timedelta(hours=30)},
    *({"parent": batch} for batch in BATCHES),
    {"parent": 2, "state": "failed"},
    {"parent": 2, "state": "pending"},
    {"parent": 2, "type": "import", "since": NOW - timedelta(hours=40)},
    *({"state": state.value, "type": "import", "tenant": "t0"} for state in State),
    *({"state": state.value, "kind": "crash"} for state in State if state is not State.SUCCEEDED),
    *(
        {"state": state.value, "until": NOW - timedelta(hours=20), "since": NOW - timedelta(hours=60)}
        for state in State
    ),
]


@pytest.fixture
def client(dsn: str, conn: Conn) -> Iterator[Client]:
    publish(conn)
    with Client(dsn) as client:
        yield client


def fill(conn: Conn, count: int = 300) -> None:
    """Jobs of every sort, in a random order, with what leads to them."""
    chance = random.Random(1)
    states = [state.value for state in State]
    for number in range(count):
        state = State.RUNNING if number == 1 else State(chance.choice(states))
        created = NOW - timedelta(hours=chance.uniform(0, 80))
        kinds = [{"kind": chance.choice(["exception", "timeout", "crash"])} for _ in range(chance.randint(0, 2))]
        conn.execute(
            "insert into dispatcher.job"
            " (type, tenant, state, priority, created_at, run_at, finished_at, parent_id, errors, payload)"
            " values (%s, %s, %s, %s, %s, %s, %s, %s, %s, '{}')",
            (
                chance.choice(["any", "import"]),
                f"t{chance.randint(0, 2)}",
                state.value,
                chance.choice([0, 0, 5]),
                created,
                created + timedelta(days=30) if state is State.SCHEDULED else None,
                created + timedelta(hours=chance.uniform(0, 5)) if state.final else None,
                None if number < 2 else chance.choice([None, None, *BATCHES]),
                Jsonb(kinds) if kinds else None,
            ),
        )
    # The lists name what has ended, name one twice, and do not name the open batch.
    for statement in (
        "insert into dispatcher.batch (job_id, total, ended_at) values (1, 99, now()), (2, 99, null)",
        """insert into dispatcher.claim (owner, term, job_ids) select 1, 1, array_agg(id) from dispatcher.job
        where state in ('running', 'failed') and id <> 2""",
        """insert into dispatcher.claim (owner, term, job_ids) select 1, 2, array_agg(id) from dispatcher.job
        where state = 'running' and id between 3 and 150""",
        """insert into dispatcher.dependency select j.id, a.after, 'run' from dispatcher.job j,
        unnest(array[1, 2, 3]) a (after) where j.state in ('blocked', 'canceled')""",
    ):
        conn.execute(statement.encode())


def expected(conn: Conn, question: dict[str, Any]) -> list[int]:
    """By a look at every job."""
    asked = {"parent": None, "kind": None, "since": None, "until": None, "type": None, "tenant": None, **question}
    states = asked.pop("state", None)
    asked["states"] = [states] if isinstance(states, str) else states
    if asked["kind"] and not states:
        asked["states"] = ["failed", "partial", "canceled"]
    rows = conn.execute(
        """
        select j.id from dispatcher.job j
        where (%(states)s::text[] is null or state = any(%(states)s)) and (%(type)s::text is null or type = %(type)s)
          and (%(tenant)s::text is null or tenant = %(tenant)s)
          and (%(parent)s::bigint is null or parent_id = %(parent)s)
          and (%(kind)s::text is null or errors -> -1 ->> 'kind' = %(kind)s)
          and (%(since)s::timestamptz is null or coalesce(finished_at, created_at) >= %(since)s)
          and (%(until)s::timestamptz is null or coalesce(finished_at, created_at) < %(until)s)
        order by j.id desc
        """,
        asked,
    )
    return [id for (id,) in rows]


def ids(jobs: list[JobInfo]) -> list[int]:
    return [job.id for job in jobs]


def leaf(client: Client, limit: int, **question: Any) -> Iterator[list[int]]:
    """The ids page by page, to the end."""
    before: int | None = None
    while True:
        page = client.page(before=before, limit=limit, **question)
        yield ids(page.jobs)
        if page.next is None:
            return
        assert before is None or page.next < before
        before = page.next


@pytest.mark.parametrize("examine", [None, 7])
def test_every_question_is_answered_as_by_a_look_at_every_job(
    client: Client, conn: Conn, examine: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(conn)
    if examine:  # so few that most pages are cut short
        monkeypatch.setattr(listing, "EXAMINE", dict.fromkeys(listing.EXAMINE, examine))
        monkeypatch.setattr(listing, "EXAMINE_PENDING", examine)
    for question in QUESTIONS:
        wanted = expected(conn, question)
        assert ids(client.list(limit=10_000, **question)) == wanted, question
        assert ids(client.list(limit=5, **question)) == wanted[:5], question
        if wanted:
            middle = wanted[len(wanted) // 2]
            assert ids(client.list(limit=10_000, before=middle, **question)) == [id for id in wanted if id < middle]
        pages = list(leaf(client, 4, **question))
        assert all(len(page) <= 4 for page in pages)
        assert list(chain.from_iterable(pages)) == wanted, question


@pytest.mark.parametrize("question", [{}, {"state": "failed"}, {"state": "pending"}, {"parent": 2}, {"kind": "crash"}])
def test_jobs_that_stay_are_on_one_page_each_while_others_come_and_go(
    client: Client, conn: Conn, question: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(conn)
    monkeypatch.setattr(listing, "EXAMINE", dict.fromkeys(listing.EXAMINE, 20))
    chance = random.Random(2)
    stay = set(chance.sample(expected(conn, question), 20))
    others = [id for id in expected(conn, {}) if id not in stay and id not in BATCHES]
    seen: list[int] = []
    for page in leaf(client, 5, **question):
        seen += page
        for id in chance.sample(others, 5):
            conn.execute(
                "update dispatcher.job set state = %s where id = %s", (chance.choice(["failed", "pending"]), id)
            )
        conn.execute("delete from dispatcher.job where id = any(%s)", (chance.sample(others, 5),))
        conn.execute(
            "insert into dispatcher.job (type, state, parent_id, errors, payload)"
            """ values ('any', %s, 2, '[{"kind": "crash"}]', '{}')""",
            (chance.choice(["failed", "pending"]),),
        )
    assert stay <= set(seen)
    assert len(seen) == len(set(seen))


def test_a_page_looks_at_so_many_jobs_and_says_where_to_go_on(
    client: Client, conn: Conn, monkeypatch: pytest.MonkeyPatch
) -> None:
    (rare,) = client.enqueue_many("import", [{}])
    client.enqueue_many("any", [{}] * 250)
    monkeypatch.setattr(listing, "EXAMINE", dict.fromkeys(listing.EXAMINE, 100))
    first = client.page(type="import")
    assert (first.jobs, first.next) == ([], rare + 151)
    third = client.page(type="import", before=rare + 51)
    assert (ids(third.jobs), third.next) == ([rare], None)
    assert ids(client.list(type="import")) == [rare]
    assert value(conn, "select count(*) from dispatcher.job") == 251


def test_pending_jobs_of_very_many_tenants_are_looked_for_among_so_many_jobs(client: Client, conn: Conn) -> None:
    conn.execute(
        "insert into dispatcher.job (type, tenant, state, payload)"
        " select 'any', 'tenant ' || n, case n when 7 then 'failed' else 'pending' end, '{}'"
        " from generate_series(1, 20002) n"
    )
    asked: list[str] = []
    ask = client._ask

    def noted(query: Any) -> Any:
        asked.append(query.name)
        return ask(query)

    client._ask = noted  # type: ignore[method-assign]
    last = 20_002
    page = client.page(state="pending")
    assert (ids(page.jobs), page.next) == (list(range(last, last - 50, -1)), last - 49)
    assert asked == ["find_pending_jobs", "find_jobs", "list_jobs"]
    assert ids(client.page(state="pending", before=9).jobs) == [8, 6, 5, 4, 3, 2, 1]
    asked.clear()
    conn.execute("select dispatcher.cancel(8)")  # one turn less, and their own list will do
    assert ids(client.page(state="pending", before=9).jobs) == [6, 5, 4, 3, 2, 1]
    assert asked == ["find_pending_jobs", "list_jobs"]


def test_job_that_leaves_the_state_between_two_statements_is_left_out(client: Client, conn: Conn) -> None:
    client.enqueue_many("any", [{}, {}])
    ask = client._ask

    def canceled_meanwhile(query: Any) -> Any:
        if query.name == "list_jobs":
            conn.execute("select dispatcher.cancel(2)")
        return ask(query)

    client._ask = canceled_meanwhile  # type: ignore[method-assign]
    assert ids(client.list(state="pending")) == [1]


def test_how_long_ago_is_counted_from_the_time_of_the_database(client: Client, conn: Conn) -> None:
    client.enqueue_many("any", [{}, {}])
    conn.execute("update dispatcher.job set created_at = now() - interval '2 hours' where id = 1")
    assert ids(client.list(since="1h")) == [2]
    assert ids(client.list(until=timedelta(hours=1))) == [1]
    assert client.list(since="3h", until=7300) == []


def test_bad_questions_are_refused(client: Client) -> None:
    with pytest.raises(WrongState, match="there is no state 'done'"):
        client.page(state=["failed", "done"])
    with pytest.raises(InvalidOption, match="limit must be a whole number from 1; it is 0"):
        client.page(limit=0)
    with pytest.raises(InvalidOption, match="has no time zone"):
        client.list(since=datetime(2030, 1, 1))  # noqa: DTZ001
    no_states: list[Any] = [5, [["failed"]]]
    for state in no_states:
        with pytest.raises(WrongState, match="there is no state"):
            client.page(state=state)
    slips: list[dict[str, Any]] = [
        {"parent": "1"},
        {"parent": 1.5},
        {"before": "1"},
        {"before": True},
        {"tenant": "\ud800"},
    ]
    for slip in slips:
        with pytest.raises(InvalidOption):
            client.page(**slip)
    with pytest.raises(InvalidOption, match="filter 'state' must be one or several of"):
        client.count_ended(state=5)  # type: ignore[arg-type]
    assert client.list(limit=0) == []
    assert client.list(parent=2**70) == []
    assert client.list(before=-5) == []
    assert client.list(before=2**70) == []
