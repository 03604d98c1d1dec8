"""Client: what is enqueued, what is refused with nothing written, and what becomes of a lost connection."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from dispatcher import Client, Registry, State, connecting
from dispatcher.errors import (
    DatabaseUnavailable,
    DispatcherError,
    InvalidOption,
    InvalidPayload,
    JobFailed,
    JobNotFound,
    PayloadTooLarge,
    SchemaError,
    UniqueConflict,
    UnknownType,
    WrongState,
)
from dispatcher.operations import CHUNK
from tests.db.front_door import ANY, IMPORT, MAX_BYTES, UNNOTICED, Import, Row, count, end, publish

UNICODE = "äß 日本 🚀 \x01\x7f \u2028 \"quoted\" back\\slash \\u0000 'single' {brace, %s %(x)s\n\ttab"


@pytest.fixture
def client(dsn: str, conn: psycopg.Connection[Any]) -> Iterator[Client]:
    publish(conn)
    with Client(dsn) as made:
        yield made


def test_every_option_arrives(client: Client) -> None:
    at = datetime(2040, 1, 31, 12, tzinfo=timezone(timedelta(hours=5, minutes=45)))
    id = client.enqueue(
        "any", {"x": 1}, priority=-5, run_at=at, tenant="t", unique_key="k", max_attempts=3, timeout="1min"
    )
    job = client.get(id)
    assert (job.type, job.payload, job.state) == ("any", {"x": 1}, State.SCHEDULED)
    assert (job.priority, job.tenant, job.unique_key, job.max_attempts) == (-5, "t", "k", 3)
    assert (job.run_at, job.timeout) == (at, timedelta(minutes=1))
    assert job.created_at.tzinfo is not None
    assert job.run_at.tzinfo is not None


@pytest.mark.parametrize("delay", [timedelta(hours=2), 7200, 7200.0, "2h"])
def test_delay_in_every_form(client: Client, delay: timedelta | float | str) -> None:
    job = client.get(client.enqueue("any", delay=delay))
    assert job.run_at - job.created_at == timedelta(hours=2)


def test_times_and_durations_read_alike_whatever_the_role_has_set(dsn: str, conn: psycopg.Connection[Any]) -> None:
    publish(conn)
    row = conn.execute("select current_database()").fetchone()
    assert row is not None
    for setting in ("datestyle = 'German'", "intervalstyle = 'iso_8601'", "timezone = 'Asia/Kathmandu'"):
        conn.execute(f'alter database "{row[0]}" set {setting}')
    with Client(dsn) as client:
        job = client.get(client.enqueue("any", delay=60, timeout=90.5))
    assert job.timeout == timedelta(seconds=90.5)
    assert job.run_at - job.created_at == timedelta(minutes=1)


def test_any_unicode_survives_the_round_trip(client: Client) -> None:
    payload = {UNICODE: [UNICODE, {"deep": UNICODE}]}
    assert client.get(client.enqueue("any", payload, tenant="日本", unique_key=UNICODE)).payload == payload
    ids = client.enqueue_many("any", [payload, payload])
    assert [client.get(id).payload for id in ids] == [payload, payload]


def test_model_instance_is_written_by_alias(client: Client) -> None:
    job = client.get(client.enqueue("import", Import(into="cities", rows=[Row(name="a")])))
    assert job.payload == {"into": "cities", "rows": [{"name": "a", "size": 0}]}


def test_unique_key_answers_the_first_job(client: Client, conn: psycopg.Connection[Any]) -> None:
    first = client.enqueue_unique("any", {"n": 1}, unique_key="k")
    assert client.enqueue_unique("any", {"n": 2}, unique_key="k") == (first[0], False)
    assert first[1]
    end(conn, first[0], "succeeded")
    assert client.enqueue_unique("any", unique_key="k")[1]


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        ([1], "the payload must be a JSON object (a dict), not an array"),
        ("x", "the payload must be a JSON object (a dict), not a string"),
        ({"rows": [{"name": "a\x00b"}]}, "rows.0.name: it has a NUL character"),
        ({"a\x00": 1}, "it has a NUL character"),
        ({"x": float("nan")}, "x: Out of range float values are not JSON compliant"),
        ({"x": [float("inf")]}, "x.0: Out of range float values"),
        ({"x": {"y": "\ud800"}}, "x.y: it has half of a surrogate pair"),
        ({"\udfff": 1}, "it has half of a surrogate pair"),
        ({"day": date(2030, 1, 1)}, "day: Object of type date is not JSON serializable"),
        ({"x": {1, 2}}, "x: Object of type set is not JSON serializable"),
        ({(1, 2): 1}, "keys must be str, int, float, bool or None, not tuple"),
    ],
)
def test_payload_that_cannot_be_stored_is_refused_by_name(
    client: Client, conn: psycopg.Connection[Any], payload: Any, told: str
) -> None:
    with pytest.raises(InvalidPayload) as caught:
        client.enqueue("any", payload)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()
    assert count(conn) == 0


def test_number_too_large_for_the_server_is_an_invalid_payload(client: Client) -> None:
    with pytest.raises(InvalidPayload):
        client.enqueue("any", {"x": 10**5000})


def test_payload_that_contains_itself_is_refused(client: Client) -> None:
    payload: dict[str, Any] = {}
    payload["me"] = payload
    with pytest.raises(InvalidPayload):
        client.enqueue("any", payload)


def test_payload_over_the_limit_says_both_sizes(client: Client, conn: psycopg.Connection[Any]) -> None:
    text = os.urandom(2 * MAX_BYTES).hex()
    with pytest.raises(PayloadTooLarge, match=rf"the payload has {len(text) + 9} bytes; the limit is {MAX_BYTES}"):
        client.enqueue("any", {"x": text})
    with pytest.raises(PayloadTooLarge, match=r"payload 2: the payload has \d+ bytes"):
        client.enqueue_many("any", [{}, {"x": text}])
    assert count(conn) == 0


def test_unknown_type_names_the_known_ones(client: Client) -> None:
    with pytest.raises(UnknownType, match="unknown job type 'nope'; known types: any, import"):
        client.enqueue("nope")
    with pytest.raises(UnknownType):
        client.enqueue("a\x00b")
    with pytest.raises(UnknownType):
        client.enqueue("\ud800")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"priority": 32768}, "priority must be a whole number from -32768 to 32767; it is 32768"),
        ({"priority": "1"}, "priority must be a whole number"),
        ({"priority": True}, "priority must be a whole number"),
        ({"max_attempts": 0}, "max_attempts must be a whole number from 1"),
        ({"delay": -1}, "delay: -1 is no duration: it must not be negative"),
        ({"delay": timedelta(seconds=-1)}, "it must not be negative"),
        ({"delay": float("nan")}, "delay: nan is no duration"),
        ({"delay": "soon"}, "delay: 'soon' is no duration: write 5s"),
        ({"delay": True}, "delay: True is no duration"),
        ({"timeout": 0}, "timeout must be more than zero"),
        ({"run_at": datetime(2030, 1, 1)}, "run_at 2030-01-01T00:00:00 has no time zone and none is assumed"),  # noqa: DTZ001
        ({"run_at": "2030-01-01T00:00:00Z"}, "run_at must be an aware datetime, not str"),
        ({"run_at": datetime.max.replace(tzinfo=timezone(timedelta(hours=-5)))}, "out of range"),
        ({"run_at": datetime.now(UTC), "delay": 1}, "give run_at or delay, not both"),
        ({"tenant": ""}, "tenant must be a text of 1 to 200 characters"),
        ({"tenant": "x" * 201}, "tenant must be a text of 1 to 200 characters"),
        ({"unique_key": "a\x00"}, "unique_key cannot be stored: it has a NUL"),
        ({"prio": 1}, "unknown option 'prio'; known options: priority, run_at, delay"),
    ],
)
def test_malformed_option_is_refused(client: Client, conn: psycopg.Connection[Any], options: Any, told: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        client.enqueue("any", **options)
    assert told in str(caught.value)
    assert count(conn) == 0


@pytest.mark.parametrize("registered", [True, False])
def test_misfit_names_the_field_with_and_without_the_model(
    dsn: str, conn: psycopg.Connection[Any], registered: bool
) -> None:
    publish(conn)
    with Client(dsn, registry=Registry([IMPORT]) if registered else None) as client:
        with pytest.raises(InvalidPayload, match=r"the payload does not fit 'import': rows\.1\.name: "):
            client.enqueue("import", {"rows": [{"name": "a"}, {"name": 5}]})
        with pytest.raises(InvalidPayload, match=r"payload 3: the payload does not fit 'import': rows\.0\.name: "):
            client.enqueue_many("import", [{}, {}, {"rows": [{}]}])
        assert count(conn) == 0
        client.enqueue("import", {"rows": [{"name": "a", "size": "5"}]})


def test_new_schema_of_a_type_is_heeded(dsn: str, conn: psycopg.Connection[Any]) -> None:
    publish(conn, ANY)
    with Client(dsn) as client:
        now = [0.0]
        client._operations._clock = lambda: now[0]
        client.enqueue("any", {"rows": 5})
        conn.execute("""update dispatcher.type set payload_schema = '{"required": ["x"]}'""")
        client.enqueue("any", {"rows": 5})
        now[0] = 60.0
        with pytest.raises(InvalidPayload, match="x: is missing"):
            client.enqueue("any", {"rows": 5})


def test_caller_s_rollback_takes_the_job_back(client: Client, conn: psycopg.Connection[Any], dsn: str) -> None:
    with psycopg.connect(dsn, row_factory=dict_row, cursor_factory=psycopg.RawCursor) as own:
        id = client.enqueue("import", {"into": "x"}, conn=own)
        many = client.enqueue_many("any", [{}] * (CHUNK + 1), conn=own)
        assert id < many[0]
        assert len(many) == CHUNK + 1
        assert count(conn) == 0
        own.rollback()
        assert count(conn) == 0
        client.enqueue("any", conn=own)
        own.commit()
    assert count(conn) == 1


def test_refusal_before_sql_leaves_the_caller_s_transaction_usable(
    client: Client, conn: psycopg.Connection[Any], dsn: str
) -> None:
    with psycopg.connect(dsn) as own:
        client.enqueue("any", conn=own)
        with pytest.raises(InvalidPayload):
            client.enqueue("import", {"rows": 5}, conn=own)
        with pytest.raises(UnknownType), own.transaction():
            client.enqueue("nope", conn=own)
    assert count(conn) == 1


def test_caller_s_own_errors_stay_psycopg_s(client: Client, dsn: str) -> None:
    with psycopg.connect(dsn) as own:
        with pytest.raises(UnknownType):
            client.enqueue("nope", conn=own)
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            client.enqueue("any", conn=own)
        own.rollback()


def test_many_are_all_or_none_on_an_autocommit_connection(client: Client, conn: psycopg.Connection[Any]) -> None:
    too_large = {"x": "x" * (9 * MAX_BYTES)}
    payloads = [*[{}] * CHUNK, too_large]
    for given in (None, conn):
        with pytest.raises(PayloadTooLarge, match=f"payload {CHUNK + 1}: "):
            client.enqueue_many("any", payloads, conn=given)
        assert count(conn) == 0


def test_ids_come_in_the_payloads_order(client: Client) -> None:
    ids = client.enqueue_many("any", ({"n": n} for n in range(20)))
    assert ids == sorted(ids)
    assert [client.get(id).payload["n"] for id in ids] == list(range(20))
    assert client.enqueue_many("any", []) == []


def test_wrong_kind_of_connection_is_refused(client: Client) -> None:
    with pytest.raises(InvalidOption, match=r"conn must be a psycopg\.Connection, not builtins\.str"):
        client.enqueue("any", conn="dsn")  # type: ignore[arg-type]


@pytest.mark.parametrize("id", [999, -1, 2**63, 10**30])
def test_job_that_does_not_exist(client: Client, id: int) -> None:
    for act in (client.get, client.result, client.cancel, client.retry, client.wait):
        with pytest.raises(JobNotFound, match=f"there is no job {id}"):
            act(id)


@pytest.mark.parametrize("text", ["a\udcff", "a\0"])
def test_text_that_cannot_be_stored_is_one_line_wherever_it_is_given(client: Client, text: str) -> None:
    for act in (
        client.pause,
        client.resume,
        client.pause_schedule,
        client.resume_schedule,
        client.trigger_schedule,
        client.remove_schedule,
        client.leader,
        client.ask_to_resign,
        lambda text: client.set_limit(text, limit=1),
        lambda text: client.page(type=text),
        lambda text: client.page(tenant=text),
        lambda text: client.page(kind=text),
        lambda text: client.count_ended(message=text),
        lambda text: client.retry_where(type=text),
        lambda text: client.add_schedule(text, "* * * * *", "any"),
        lambda text: client.add_schedule("s", "* * * * *", "any", catch_up=text),
    ):
        with pytest.raises(DispatcherError) as caught:
            act(text)
        assert len(str(caught.value).splitlines()) == 1
        assert "client_encoding" not in str(caught.value)


def test_result_tells_how_the_job_ended(client: Client, conn: psycopg.Connection[Any]) -> None:
    id = client.enqueue("any")
    with pytest.raises(WrongState, match=f"job {id} is pending: it has no result yet"):
        client.result(id)
    end(conn, id, "partial", result={"rows": 3}, error="one was bad")
    assert client.result(id) == {"rows": 3}
    end(conn, id, "failed", error="ValueError: " + UNICODE)
    with pytest.raises(JobFailed, match="failed after 1 attempt: ValueError: äß"):
        client.result(id)


def test_verbs_in_the_wrong_state(client: Client, conn: psycopg.Connection[Any]) -> None:
    id = client.enqueue("any", unique_key="k")
    with pytest.raises(WrongState, match="is pending; only failed"):
        client.retry(id)
    assert client.cancel(id) == "canceled"
    assert client.cancel(id) == "canceled"
    other = client.enqueue("any", unique_key="k")
    with pytest.raises(UniqueConflict, match="another unfinished job has its unique key"):
        client.retry(id)
    end(conn, other, "succeeded")
    with pytest.raises(WrongState, match="has already ended, it is succeeded"):
        client.cancel(other)
    assert client.retry(id) == "pending"


def test_list_pages_and_filters(client: Client, conn: psycopg.Connection[Any]) -> None:
    ids = client.enqueue_many("any", [{}] * 5, tenant="t")
    other = client.enqueue("import", {})
    end(conn, ids[0], "failed")
    assert [job.id for job in client.list(limit=2)] == [other, ids[4]]
    assert [job.id for job in client.list(limit=2, before=ids[4])] == [ids[3], ids[2]]
    assert [job.id for job in client.list(state="failed")] == [ids[0]]
    assert [job.id for job in client.list(type="import")] == [other]
    assert len(client.list(tenant="t")) == 5
    with pytest.raises(WrongState, match="there is no state 'done'; the states are scheduled"):
        client.list(state="done")


def test_wait_returns_once_all_have_ended(dsn: str, client: Client, conn: psycopg.Connection[Any]) -> None:
    ids = client.enqueue_many("any", [{}, {}])
    end(conn, ids[0], "failed")
    looked = threading.Event()
    ask = client._ask

    def look(query: Any) -> Any:
        rows = ask(query)
        looked.set()
        return rows

    client._ask = look  # type: ignore[method-assign]
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(client.wait, ids)
        assert looked.wait(10)
        assert not waiting.done()
        end(conn, ids[1], "succeeded", result=1)
        assert [job.state for job in waiting.result(10)] == [State.FAILED, State.SUCCEEDED]
    assert client.wait([]) == []
    assert client.wait(ids[1]).result == 1


def test_wait_gives_up_in_time(client: Client) -> None:
    id = client.enqueue("any")
    with pytest.raises(TimeoutError, match=f"job {id} has not ended in time"):
        client.wait(id, timeout=0.05)
    with pytest.raises(TimeoutError, match=r"2 jobs \(\d+, \d+\) have not ended in time"):
        client.wait([id, client.enqueue("any")], timeout=timedelta(0))


def test_lost_connection_is_replaced(client: Client, conn: psycopg.Connection[Any]) -> None:
    id = client.enqueue("any")
    assert client._conn is not None
    conn.execute("select pg_terminate_backend(%s, 5000)", (client._conn.info.backend_pid,))
    assert client.enqueue("any") > id  # seen before anything was sent: nothing is enqueued twice
    assert count(conn) == 2


def test_nothing_stays_in_the_session_that_a_pooler_would_hand_to_another(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "is_direct", lambda *_: False)
    for _ in range(10):
        client.enqueue("any", priority=1, delay=1)
        client.enqueue_many("any", [{}] * 3)
        client.list()
    assert client._conn is not None
    assert client._conn.execute("select count(*) from pg_prepared_statements").fetchone() == (0,)
    changed = client._conn.execute("select name from pg_settings where source = 'session' and name <> 'search_path'")
    assert changed.fetchall() == []


def test_what_is_sent_often_is_prepared_on_a_session_of_its_own(client: Client) -> None:
    for _ in range(3):
        client.enqueue("any")
        client.list()
    assert client._conn is not None
    (prepared,) = client._conn.execute("select statement from pg_prepared_statements").fetchall()
    assert "enqueue_unique" in prepared[0]


def test_a_prepared_statement_that_another_session_does_not_know_is_sent_unprepared(client: Client) -> None:
    """A pooler that was not noticed gives now this session, now that."""
    first = client.enqueue("any")
    assert client._conn is not None
    client._conn.execute(UNNOTICED)
    assert [client.enqueue("any") for _ in range(2)] == [first + 1, first + 2]
    assert client._conn.prepare_threshold is None


def test_a_prepared_statement_survives_a_migration(client: Client, conn: psycopg.Connection[Any]) -> None:
    client.enqueue("any")
    conn.execute(
        "drop function dispatcher.enqueue_unique;"
        " create function dispatcher.enqueue_unique(text, jsonb, jsonb, out id integer, out created boolean)"
        " language sql return (7, true)"
    )
    assert client.enqueue("any") == 7


def test_threads_share_one_client(client: Client, conn: psycopg.Connection[Any]) -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda n: client.enqueue("any", {"n": n}), range(200)))
    assert len(set(ids)) == 200
    assert {client.get(id).payload["n"] for id in ids[:20]} == set(range(20))
    assert count(conn) == 200


def test_forked_child_uses_a_connection_of_its_own(client: Client, conn: psycopg.Connection[Any]) -> None:
    client.enqueue("any")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            client.enqueue("any")
            client.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    client.enqueue("any")
    assert count(conn) == 3


def test_unreachable_server_is_one_line_without_the_password() -> None:
    with pytest.raises(DatabaseUnavailable) as caught:
        Client("postgresql://u:s3cret@127.0.0.1:1/db").get(1)
    assert "Connection refused" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_database_without_the_schema_says_what_to_do(empty_dsn: str) -> None:
    with Client(empty_dsn) as client:
        with pytest.raises(SchemaError, match="run `dispatcher migrate` first"):
            client.enqueue("any")
        with pytest.raises(SchemaError, match="run `dispatcher migrate` first"):
            client.get(1)


def test_role_without_grants_says_so(superuser_dsn: str, client: Client) -> None:
    with psycopg.connect(superuser_dsn, autocommit=True) as root:
        name = f"stranger_{os.getpid()}"
        root.execute(f"create role {name} login")
        try:
            stranger = psycopg.conninfo.make_conninfo(superuser_dsn, user=name)
            with Client(stranger) as other, pytest.raises(SchemaError, match="grant_access"):
                other.get(1)
        finally:
            root.execute(f"drop role {name}")


def test_types_replicas_and_leader_of_an_idle_database(client: Client) -> None:
    types = {one.name: one for one in client.types()}
    assert set(types) == {"any", "import"}
    assert types["import"].timeout == timedelta(minutes=1)
    assert types["import"].payload_schema is not None
    assert client.replicas() == []
    assert client.leader() is None
    assert client.ask_to_resign() is None


@pytest.mark.parametrize("id", ["1", None, True, 1.0, [1]])
def test_what_is_no_id_is_one_line(client: Client, id: Any) -> None:
    ask = [
        client.get,
        client.result,
        client.cancel,
        client.retry,
        client.explain,
        client.predecessors,
        client.get_batch,
    ]
    for method in ask if id == [1] else [*ask, client.wait]:
        with pytest.raises(InvalidOption, match="must be a whole number"):
            method(id)  # type: ignore[operator]


def test_what_is_no_type_is_one_line(client: Client) -> None:
    for method in (client.pause, client.resume, client.set_limit):
        with pytest.raises(UnknownType):
            method(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("payloads", [5, None, "{}", b"{}"])
def test_payloads_that_are_not_several_are_refused_in_one_line(client: Client, payloads: Any) -> None:
    with pytest.raises(InvalidPayload, match="payloads must be several"):
        client.enqueue_many("any", payloads)
    with pytest.raises(InvalidPayload, match="payloads must be several"):
        client.enqueue_many_unique("any", payloads, [])
    with pytest.raises(InvalidPayload, match="payloads must be several"):
        client.batch("any", payloads)
    with pytest.raises(InvalidOption, match="there must be a unique key"):
        client.enqueue_many_unique("any", [{}], payloads)
