"""The SQL that any client may call: what it takes, what it refuses and how, and with which rights."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import conninfo

from dispatcher.db import Connection
from dispatcher.executor import Executor
from tests.db.running import claim, enqueue, job, nothing, open_transaction, publish, session, value

LIMIT = 10_000


@pytest.fixture(autouse=True)
def types(conn: Connection) -> None:
    publish(conn, Executor("quick", nothing, "tests.quick"), max_payload_bytes=LIMIT)


def refused(conn: psycopg.Connection[Any], sqlstate: str, query: str, *params: Any) -> str:
    """The message with which a call is refused; nothing is written."""
    with pytest.raises(psycopg.Error) as caught:
        conn.execute(query.encode(), params)
    assert caught.value.sqlstate == sqlstate, caught.value
    assert value(conn, "select count(*) from dispatcher.job") == 0
    message = caught.value.diag.message_primary or ""
    assert len(message.splitlines()) == 1
    return message


def refused_options(conn: Connection, options: str) -> str:
    return refused(conn, "DJ004", "select dispatcher.enqueue('quick', '{}', %s::jsonb)", options)


def test_defaults(conn: Connection) -> None:
    id = value(conn, "select dispatcher.enqueue('quick')")
    row = job(conn, id)
    assert (row["state"], row["payload"], row["priority"], row["tenant"], row["unique_key"]) == (
        "pending",
        {},
        0,
        None,
        None,
    )
    assert row["run_at"] == row["created_at"]


def test_every_option(conn: Connection) -> None:
    id = enqueue(
        conn,
        payload={"a": [1, "ä🎉"]},
        priority=-32768,
        run_at="2100-01-31T12:00:00+02:00",
        tenant="acme",
        unique_key="k",
        max_attempts=32767,
        timeout="1h",
    )
    row = job(conn, id)
    assert row["state"] == "scheduled"
    assert row["payload"] == {"a": [1, "ä🎉"]}
    assert (row["priority"], row["tenant"], row["unique_key"], row["max_attempts"]) == (-32768, "acme", "k", 32767)
    assert row["timeout"] == timedelta(hours=1)
    assert row["run_at"] == datetime(2100, 1, 31, 10, tzinfo=UTC)


@pytest.mark.parametrize("name", ["priority", "run_at", "delay", "tenant", "unique_key", "max_attempts", "timeout"])
def test_null_option_is_as_good_as_none(conn: Connection, name: str) -> None:
    options: dict[str, Any] = {name: None}
    enqueue(conn, **options)


@pytest.mark.parametrize("delay", [30, "30", "30s", "0.5min", "00:00:30", "PT30S"])
def test_delay_in_many_forms(conn: Connection, delay: Any) -> None:
    row = job(conn, enqueue(conn, delay=delay))
    assert row["run_at"] - row["created_at"] == timedelta(seconds=30)
    assert row["state"] == "scheduled"


@pytest.mark.parametrize("options", [{"delay": 0}, {"run_at": "2000-01-01T00:00:00Z"}])
def test_what_is_due_already_is_pending(conn: Connection, options: dict[str, Any]) -> None:
    assert job(conn, enqueue(conn, **options))["state"] == "pending"


@pytest.mark.parametrize(
    "run_at",
    [
        "2100-01-01T00:00:00Z",
        "2100-01-01 00:00:00+00",
        "2100-01-01T02:00+0200",
        "2099-12-31T19:00:00-05:00 ",
        "2100-01-01T02:00:00.000+02",
        "21000101T020000+0200",
        "20991231T1900-0500",
        "21000101T000000Z",
    ],
)
def test_zones(conn: Connection, run_at: str) -> None:
    conn.execute("set timezone = 'Asia/Tokyo'; set datestyle = 'SQL, DMY'; set intervalstyle = 'sql_standard'")
    id = enqueue(conn, run_at=run_at)
    conn.execute("reset all")
    assert job(conn, id)["run_at"] == datetime(2100, 1, 1, tzinfo=UTC)


BAD_OPTIONS = [
    '{"priorty": 1}',
    '{"priority": 32768}',
    '{"priority": -32769}',
    '{"priority": 1.5}',
    '{"priority": "1"}',
    '{"priority": true}',
    '{"priority": 1e400}',
    '{"max_attempts": 0}',
    '{"max_attempts": 32768}',
    '{"delay": -1}',
    '{"delay": "-5s"}',
    '{"delay": "soon"}',
    '{"delay": ""}',
    '{"delay": []}',
    '{"delay": 1e300}',
    '{"delay": 1e400}',
    '{"delay": 1e12}',
    '{"delay": "infinity"}',
    '{"delay": "20000 years"}',
    '{"delay": "200000 years"}',
    '{"timeout": 0}',
    '{"timeout": 1e-9}',
    '{"timeout": -1}',
    '{"timeout": "200000000 years"}',
    '{"timeout": "20000 years"}',
    '{"run_at": "2100-01-01T00:00:00"}',
    '{"run_at": "2100-01-31"}',
    '{"run_at": "01-31-2100"}',
    '{"run_at": "Jan-31-30"}',
    '{"run_at": "tomorrow"}',
    '{"run_at": "infinity"}',
    '{"run_at": "2100-13-01T00:00:00Z"}',
    '{"run_at": "20000-01-01T00:00:00Z"}',
    '{"run_at": "0044-03-15 BC 00:00:00Z"}',
    '{"run_at": 5}',
    '{"run_at": "2100-01-01T00:00:00+99:00"}',
    '{"run_at": "2100-01-01T00:00:00Z", "delay": 5}',
    '{"tenant": ""}',
    '{"tenant": 5}',
    '{"unique_key": ""}',
    '{"unique_key": ["a"]}',
    '{"after": ["1"]}',
    '{"parent": "1"}',
    '{"on_failure": "run"}',
    "[]",
    '"text"',
    "5",
]


@pytest.mark.parametrize("options", BAD_OPTIONS)
def test_bad_option_is_refused_in_one_line(conn: Connection, options: str) -> None:
    refused_options(conn, options)


@pytest.mark.parametrize("name", ["tenant", "unique_key"])
def test_too_long_a_name_is_refused(conn: Connection, name: str) -> None:
    assert name in refused_options(conn, json.dumps({name: "x" * 201}))
    enqueue(conn, **{name: "🎉" * 200})  # the longest that fits into the indexes


def test_unknown_option_names_the_known_ones(conn: Connection) -> None:
    message = refused_options(conn, '{"priorty": 1}')
    assert "priorty" in message
    assert "priority" in message


@pytest.mark.parametrize("type", ["nope", "", "Quick", "quick ", None, "x" * 1000])
def test_unknown_type_names_the_known_ones(conn: Connection, type: str | None) -> None:
    for query in (
        "select dispatcher.enqueue(%s)",
        "select dispatcher.enqueue_many(%s, array['{}']::jsonb[])",
        "select dispatcher.enqueue_unique(%s)",
    ):
        message = refused(conn, "DJ001", query, type)
        assert "known types: quick" in message


def test_no_types_at_all_says_so(conn: Connection) -> None:
    conn.execute("delete from dispatcher.type")
    assert "none" in refused(conn, "DJ001", "select dispatcher.enqueue('quick')")


@pytest.mark.parametrize("payload", ["[]", "5", '"text"', "null", "true", None])
def test_payload_must_be_an_object(conn: Connection, payload: str | None) -> None:
    refused(conn, "DJ002", "select dispatcher.enqueue('quick', %s::jsonb)", payload)
    many = "select dispatcher.enqueue_many('quick', array['{}', %s]::jsonb[])"
    assert "payload 2" in refused(conn, "DJ002", many, payload)


def test_bad_payload_is_found_whatever_the_array_s_bounds(conn: Connection) -> None:
    query = "select dispatcher.enqueue_many('quick', %s::jsonb[])"
    assert "payload 1" in refused(conn, "DJ002", query, "[0:2]={5,{},{}}".replace("{}", '"{}"'))
    assert "payload 3" in refused(conn, "DJ002", query, '{{"{}","{}"},{5,"{}"}}')


def test_nul_in_a_payload_is_refused(conn: Connection) -> None:
    refused(conn, "22P05", "select dispatcher.enqueue('quick', %s::jsonb)", '{"a": "\\u0000"}')


@pytest.mark.parametrize(
    "payload",
    [
        json.dumps({"a": "x" * LIMIT}),
        json.dumps({"a": [0] * LIMIT}),
        json.dumps({"a": "\x01" * (LIMIT // 5)}),  # six bytes of text each
        '{"a": 1e20000}',
        '{"a": [1e100000, 1e100000]}',  # a few bytes when stored, and twenty times the limit as text
    ],
    ids=["text", "array", "escapes", "exponent", "exponents"],
)
def test_oversized_payload_says_both_sizes(conn: Connection, payload: str) -> None:
    """The limit is of the text, however it is stored: what a claim reads is text."""
    message = refused(conn, "DJ003", "select dispatcher.enqueue('quick', %s::jsonb)", payload)
    assert f"the limit is {LIMIT}" in message
    many = "select dispatcher.enqueue_many('quick', array['{}', %s]::jsonb[])"
    assert "payload 2: the payload has" in refused(conn, "DJ003", many, payload)


def test_oversized_payload_from_a_compressed_column_is_refused(conn: Connection) -> None:
    conn.execute("create table source (payload jsonb)")
    conn.execute("insert into source values (jsonb_build_object('a', repeat('x', 40000)))")
    assert value(conn, "select pg_column_size(payload) < 1000 from source")
    refused(conn, "DJ003", "select dispatcher.enqueue('quick', payload) from source")
    refused(conn, "DJ003", "select dispatcher.enqueue_many('quick', array_agg(payload)) from source")


def test_payload_at_the_limit_is_taken(conn: Connection) -> None:
    text = json.dumps({"a": "x" * (LIMIT - 9)})
    assert len(text) == LIMIT
    value(conn, "select dispatcher.enqueue('quick', %s::jsonb)", text)


def test_payload_s_text_can_always_be_claimed(dsn: str, conn: Connection) -> None:
    """Were its text beyond what PostgreSQL can make, each claim would fail, and with it the leader."""
    publish(conn, Executor("quick", nothing, "tests.quick"), max_payload_bytes=2**20)
    poison = '{"a": [' + ", ".join(["1e131071"] * 9000) + "]}"  # 1.2 GB as text
    with pytest.raises(psycopg.Error):
        conn.execute("select dispatcher.enqueue('quick', %s::jsonb)", (poison,))
    good = enqueue(conn)
    with session(dsn) as lease:
        assert [claimed.id for claimed in claim(lease)] == [good]


def test_many_are_all_or_none_and_in_order(conn: Connection) -> None:
    query = "select dispatcher.enqueue_many('quick', %s::jsonb[], '{\"priority\": 3}')"
    payloads = [json.dumps({"n": n}) for n in range(5000)]
    ids = [id for (id,) in conn.execute(query, (payloads,))]
    rows = conn.execute("select id, (payload->>'n')::integer, priority from dispatcher.job order by id").fetchall()
    assert rows == [(id, n, 3) for n, id in enumerate(ids)]
    with pytest.raises(psycopg.Error):
        conn.execute(query, ([*payloads, "[]"],))
    assert value(conn, "select count(*) from dispatcher.job") == 5000


def test_many_of_none(conn: Connection) -> None:
    for none in ("'{}'::jsonb[]", "null::jsonb[]"):
        assert conn.execute(f"select dispatcher.enqueue_many('quick', {none})".encode()).fetchall() == []


def test_many_with_one_unique_key_make_no_sense(conn: Connection) -> None:
    refused(conn, "DJ004", "select dispatcher.enqueue_many('quick', '{}', '{\"unique_key\": \"k\"}')")


# Unique keys.


def unique(conn: psycopg.Connection[Any], key: str, type: str = "quick") -> tuple[int, bool]:
    row = conn.execute(
        "select id, created from dispatcher.enqueue_unique(%s, '{}', %s::jsonb)",
        (type, json.dumps({"unique_key": key})),
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def test_unique_key_answers_the_first_job_until_it_ends(conn: Connection) -> None:
    publish(conn, Executor("other", nothing, "tests.other"))
    first, created = unique(conn, "k")
    assert created
    for state in ("pending", "scheduled", "blocked", "running"):
        conn.execute("update dispatcher.job set state = %s, run_at = now()", (state,))
        assert unique(conn, "k") == (first, False)
        assert enqueue(conn, unique_key="k") == first
    assert unique(conn, "other key")[1]
    assert unique(conn, "k", "other")[1]
    for state in ("succeeded", "partial", "failed", "canceled"):
        conn.execute("update dispatcher.job set state = %s where unique_key = 'k'", (state,))
        assert unique(conn, "k")[1]


def test_fifty_callers_make_one_row(dsn: str, conn: Connection) -> None:
    """The row ends again and again meanwhile: each caller is answered one that was live, and two never are."""
    go = threading.Barrier(51)
    answers: list[tuple[int, bool]] = []
    errors: list[Exception] = []

    def call() -> None:
        try:
            with psycopg.connect(dsn, autocommit=True) as own:
                go.wait()
                answers.extend(unique(own, "k") for _ in range(20))
        except (psycopg.Error, threading.BrokenBarrierError) as exc:
            errors.append(exc)

    callers = [threading.Thread(target=call) for _ in range(50)]
    for caller in callers:
        caller.start()
    go.wait()
    ended = 0
    while any(caller.is_alive() for caller in callers):
        query = "update dispatcher.job set state = 'succeeded' where live_key = 'k' and id % 2 = 1"
        ended += conn.execute(query.encode()).rowcount
        if ended:
            break
    for caller in callers:
        caller.join()
    assert not errors
    assert len(answers) == 1000
    created = [id for id, new in answers if new]
    assert len(created) == len(set(created)) == value(conn, "select count(*) from dispatcher.job") <= ended + 1
    assert {id for id, _ in answers} == set(created)
    assert value(conn, "select count(*) from dispatcher.job where live_key = 'k'") <= 1


def test_unique_key_waits_for_whoever_is_about_to_commit_it(dsn: str, conn: Connection) -> None:
    """And takes its place when that rolls back."""
    answer: list[tuple[int, bool]] = []

    def call() -> None:
        with psycopg.connect(dsn, autocommit=True) as own:
            answer.append(unique(own, "k"))

    for commit in (False, True):
        with psycopg.connect(dsn) as first:
            id, created = unique(first, "k")
            assert created
            caller = threading.Thread(target=call)
            caller.start()
            waiting = "select count(*) from pg_locks where not granted and locktype = 'transactionid'"
            deadline = time.monotonic() + 10
            while not value(conn, waiting):
                assert time.monotonic() < deadline
            if commit:
                first.commit()
            else:
                first.rollback()
            caller.join()
        if commit:
            assert answer.pop() == (id, False)
        else:
            new, created = answer.pop()
            assert created
            conn.execute("update dispatcher.job set state = 'canceled' where id = %s", (new,))


def test_unique_key_in_an_old_snapshot_is_an_error_not_a_second_job(dsn: str, conn: Connection) -> None:
    with psycopg.connect(dsn) as old:
        old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        old.execute("select 1 from dispatcher.job")
        unique(conn, "k")
        with pytest.raises(psycopg.errors.SerializationFailure):
            unique(old, "k")
    assert value(conn, "select count(*) from dispatcher.job") == 1


# Rights.


@pytest.fixture
def guest(dsn: str, superuser_dsn: str, conn: Connection) -> Any:
    """A role that may enqueue and nothing more."""
    with psycopg.connect(superuser_dsn, autocommit=True) as admin:
        name = "guest_" + conninfo.conninfo_to_dict(dsn)["dbname"].split("_")[1]  # type: ignore[union-attr]
        admin.execute(f"create role {name} login")
        conn.execute("select dispatcher.grant_access(%s, 'enqueue')", [name])
        with psycopg.connect(dsn, user=name, autocommit=True) as own:
            yield own
        admin.execute(f"drop owned by {name}")
        admin.execute(f"drop role {name}")


def test_guest_can_enqueue_cancel_and_retry(conn: Connection, guest: Connection) -> None:
    id = enqueue(guest, unique_key="k")
    assert unique(guest, "k") == (id, False)
    assert len(guest.execute("select dispatcher.enqueue_many('quick', array['{}', '{}']::jsonb[])").fetchall()) == 2
    assert value(guest, "select dispatcher.cancel(%s)", id) == "canceled"
    assert value(guest, "select dispatcher.retry(%s)", id) == "pending"
    assert value(conn, "select count(*) from dispatcher.job") == 3


@pytest.mark.parametrize(
    "query",
    [
        "select from dispatcher.job",
        "select payload from dispatcher.jobs",
        "select max_running from dispatcher.type",
        "select from dispatcher.claim",
        "insert into dispatcher.job (type, state, payload) values ('quick', 'pending', '{}')",
        "update dispatcher.job set state = 'canceled'",
        "delete from dispatcher.job",
        "update dispatcher.lease set term = 0",
        "select dispatcher.complete(1, 1, 'null')",
        "select dispatcher.checkpoint(1, 1, 'null')",
        "select dispatcher.wait_lease(1, 1)",
        "select dispatcher.doze(1, true)",
        "create table dispatcher.mine ()",
    ],
)
def test_guest_can_touch_nothing_else(guest: Connection, query: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        guest.execute(query.encode())


def test_caller_s_search_path_changes_nothing(conn: Connection) -> None:
    """The functions run as their owner: names must not lead to what a caller puts in their way."""
    conn.execute("create schema trap")
    conn.execute("create function trap.format(text, variadic text[]) returns text language sql return 'trapped'")
    conn.execute("create function trap.now() returns timestamptz language sql return timestamptz '2000-01-01'")
    conn.execute("set search_path = trap, pg_catalog")
    row = job(conn, enqueue(conn, delay=60))
    assert row["run_at"] - row["created_at"] == timedelta(seconds=60)
    conn.execute("delete from dispatcher.job")
    assert "trapped" not in refused(conn, "DJ001", "select dispatcher.enqueue('nope')")


def test_job_of_a_rolled_back_transaction_never_was(dsn: str, conn: Connection) -> None:
    with open_transaction(dsn, "select dispatcher.enqueue('quick')"):
        pass
    assert value(conn, "select count(*) from dispatcher.job") == 0
