"""Named queries: a payload brings values and never SQL, and nothing that a query does can write."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from dispatcher_executors.queries import find_query, reading

from dispatcher.context import Context, Interrupted
from dispatcher.errors import DatabaseUnavailable
from dispatcher.executor import Fail
from dispatcher.job import CancelReason, Job
from dispatcher.testing.fake import FakeRuntime
from tests.db.running import publish, until, value

Connection = psycopg.Connection[Any]
Write = Callable[[str], None]


@pytest.fixture
def queries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes the administrator's file."""
    file = tmp_path / "queries.toml"
    monkeypatch.setenv("DISPATCHER_QUERIES", str(file))

    def write(text: str) -> None:
        file.write_text(text, encoding="utf-8")

    return write


@pytest.fixture
def ctx(dsn: str) -> Context:
    runtime = FakeRuntime(connect=lambda: psycopg.connect(dsn), max_result_bytes=2**20)
    return Context(Job(1, "q", None, {}, 0, 1, 0, datetime.now(UTC)), timeout_s=None, runtime=runtime)


def run(ctx: Context, name: str, **params: object) -> list[tuple[Any, ...]]:
    with reading(ctx, find_query(name, params)) as query:
        rows: list[tuple[Any, ...]] = query.conn.execute(query.statement).fetchall()
    return rows


def section(sql: str, params: str = "", more: str = "") -> str:
    return f"[q]\nsql = '''{sql}'''\nparams = {{{params}}}\n{more}\n"


KINDS = {
    "text": ("né '; drop table t; --\\", '"né \'; drop table t; --\\\\"'),
    "int": (-9223372036854775808, "-9223372036854775808"),
    "number": ("-12345678901234567890.120", "-12345678901234567890.120"),
    "bool": (True, "true"),
    "date": ("2013-01-31", '"2013-01-31"'),
    "timestamp": ("2013-01-31T12:00:00+02:00", '"2013-01-31T10:00:00+00:00"'),
    "uuid": ("6f1c5d1e-0000-4000-8000-000000000000", '"6f1c5d1e-0000-4000-8000-000000000000"'),
    "int[]": ([3, -1], "[3,-1]"),
    "text[]": (['a"b', "{x,y}", "\\", "null", ""], '["a\\"b","{x,y}","\\\\","null",""]'),
    "date[]": (["2013-01-31"], '["2013-01-31"]'),
    "int[] of none": ([], "[]"),
}
SQL_TYPES = {"text": "text", "int": "bigint", "number": "numeric", "bool": "boolean", "timestamp": "timestamptz"}


@pytest.mark.parametrize("case", KINDS)
def test_values_of_each_kind_arrive_as_they_are(queries: Write, ctx: Context, case: str) -> None:
    given, expected = KINDS[case]
    kind = case.split(maxsplit=1)[0]
    plain = kind.removesuffix("[]")
    queries(
        section(f"select to_json(%(v)s::{kind.replace(plain, SQL_TYPES.get(plain, plain))})::text", f'v = "{kind}"')
    )
    assert run(ctx, "q", v=given) == [(expected,)]


@pytest.mark.parametrize(
    "hostile", ["'; drop table t; --", "\\'; drop table t; --", "$$;drop table t;$$", "%(x)s", "' or '1'='1"]
)
def test_text_never_becomes_sql(queries: Write, ctx: Context, conn: Connection, hostile: str) -> None:
    conn.execute("create table t (a text)")
    conn.execute("insert into t values ('kept')")
    queries(section("select a from t where a = %(v)s", 'v = "text"'))
    assert run(ctx, "q", v=hostile) == []
    assert value(conn, "select count(*) from t") == 1


PLACES = {
    "a line comment": ("select 1 as a -- of %(v)s", "\n union select 2 --"),
    "the same with a carriage return": ("select 1 as a -- of %(v)s", "\r union select 2 --"),
    "a comment": ("select 1 as a /* of %(v)s */", "*/ union select 2 /*"),
    "a list in a comment": ("select 1 as a -- of %(v)s", ["\n union select 2 --"]),
    "dollar quotes": ("select 1 as a where $$%(v)s$$ <> ''", "$$ = '' union select 2 where $$"),
}


@pytest.mark.parametrize("place", PLACES)
def test_value_does_not_leave_the_place_where_its_placeholder_stands(queries: Write, ctx: Context, place: str) -> None:
    sql, hostile = PLACES[place]
    kind = "text[]" if isinstance(hostile, list) else "text"
    queries(f'[q]\nsql = """{sql}"""\nparams = {{v = "{kind}"}}')
    assert run(ctx, "q", v=hostile) == [(1,)]


@pytest.mark.parametrize("scs", ["on", "off"])
def test_backslashes_are_quoted_as_the_server_reads_them(
    queries: Write, dsn: str, conn: Connection, ctx: Context, scs: str
) -> None:
    """With standard_conforming_strings off a backslash would escape the closing quote."""
    role = psycopg.conninfo.conninfo_to_dict(dsn)["user"]
    conn.execute(
        psycopg.sql.SQL("alter role {} set standard_conforming_strings = {}").format(
            psycopg.sql.Identifier(str(role)), psycopg.sql.Literal(scs)
        )
    )
    conn.execute(
        psycopg.sql.SQL("alter role {} set escape_string_warning = off").format(psycopg.sql.Identifier(str(role)))
    )
    try:
        queries(section("select %(v)s::text, %(w)s::text[]", 'v = "text", w = "text[]"'))
        assert run(ctx, "q", v="\\' or 1=1 --", w=["\\'", "\\"]) == [("\\' or 1=1 --", ["\\'", "\\"])]
    finally:
        conn.execute(psycopg.sql.SQL("alter role {} reset all").format(psycopg.sql.Identifier(str(role))))


@pytest.mark.parametrize(
    ("kind", "bad", "said"),
    [
        ("int", "1", "a whole number"),
        ("int", True, "a whole number"),
        ("int", 2**63, "a whole number"),
        ("int", 1.0, "a whole number"),
        ("number", "NaN", "a number"),
        ("number", "1e999999999", "a number"),
        ("number", "x", "a number"),
        ("bool", 1, "true or false"),
        ("text", 5, "a text"),
        ("text", "a\0b", "a text"),
        ("text", "\ud800", "a text"),
        ("date", "31.1.2013", "a date"),
        ("date", 20130131, "a date"),
        ("timestamp", "2013-01-31T12:00:00", "with its zone"),
        ("uuid", "x", "a UUID"),
        ("int[]", 1, "a list, each a whole number"),
        ("int[]", [1, None], "a list, each a whole number"),
        ("int", None, "give the parameter 'v'"),
    ],
)
def test_wrong_value_fails_before_the_query_runs(queries: Write, kind: str, bad: object, said: str) -> None:
    queries(section("select %(v)s", f'v = "{kind}"'))
    with pytest.raises(Fail, match=said):
        find_query("q", {"v": bad})


def test_unknown_parameter_is_refused(queries: Write) -> None:
    queries(section("select 1", 'v = "int"'))
    with pytest.raises(Fail, match="there is no parameter 'w'; it takes v"):
        find_query("q", {"v": 1, "w": 2})


def test_optional_parameter_that_is_left_out_is_null(queries: Write, ctx: Context) -> None:
    queries(section("select %(v)s::date is null", 'v = "date?"'))
    assert run(ctx, "q") == [(True,)]


def test_without_a_file_it_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPATCHER_QUERIES", raising=False)
    with pytest.raises(Fail, match="set DISPATCHER_QUERIES for the daemon to a TOML file"):
        find_query("q", {})


def test_unknown_query_lists_those_that_exist_and_the_file_is_read_each_time(queries: Write) -> None:
    queries("[b]\nsql = 'select 1'\n[a]\nsql = 'select 1'\n")
    with pytest.raises(Fail, match="there is no query 'q'; DISPATCHER_QUERIES has a, b"):
        find_query("q", {})
    queries(section("select 1"))
    assert find_query("q", {}).name == "q"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[q", "is no TOML file"),
        ("[q]\n", "query 'q': sql: Field required"),
        ("[q]\nsql = 'select 1'\nparms = {}", "query 'q': parms: Extra inputs"),
        ("[q]\nsql = 'select 1'\nparams = {v = 'integer'}", "there is no kind 'integer'; there are text, int"),
        ("q = 1", "query 'q': Input should be"),
    ],
)
def test_mistake_in_the_file_is_named(queries: Write, text: str, said: str) -> None:
    queries(text)
    with pytest.raises(Fail, match=said):
        find_query("q", {})


@pytest.mark.parametrize(
    "sql",
    [
        "insert into t values (1) returning a",
        "select writes()",
        "select dispatcher.enqueue('quick')",
        "select sneaks()",
        "select nextval('s')",
        "with x as (insert into t values (1) returning a) select * from x",
    ],
)
def test_query_that_writes_changes_nothing(queries: Write, ctx: Context, conn: Connection, sql: str) -> None:
    publish(conn)
    conn.execute("create table t (a int)")
    conn.execute("create sequence s")
    conn.execute(
        "create function writes() returns int language plpgsql as 'begin insert into t values (1); return 1; end'"
    )
    conn.execute(
        "create function sneaks() returns int language plpgsql as 'begin"
        " perform set_config(''transaction_read_only'', ''off'', true); insert into t values (1); return 1; end'"
    )
    queries(section(sql))
    with pytest.raises(Fail, match=r"^query 'q': "):
        run(ctx, "q")
    assert value(conn, "select count(*) from t") == 0
    assert value(conn, "select count(*) from dispatcher.job") == 0
    assert value(conn, "select is_called from s") is False


@pytest.mark.parametrize(
    "sql",
    [
        "select 1; select 2",
        "select 1; commit; drop table t; select 1",
        "select 1) as query limit 0; drop table t; select * from (select 1",
        "select 1) to stdout; drop table t; copy (select 1",
        "select 1 /*",
        "select 'a",
        "commit",
        "drop table t",
    ],
)
def test_more_than_one_query_is_refused(queries: Write, ctx: Context, conn: Connection, sql: str) -> None:
    conn.execute("create table t (a int)")
    queries(section(sql.replace("'''", "")))
    with pytest.raises(Fail, match=r"^query 'q': "):
        run(ctx, "q")
    assert value(conn, "select to_regclass('t') is not null")


def test_comment_and_semicolon_at_the_end_do_no_harm(queries: Write, ctx: Context) -> None:
    queries(section("select 1 -- one\n;\n"))
    assert run(ctx, "q") == [(1,)]
    queries(section("select 1 -- one"))
    assert run(ctx, "q") == [(1,)]


@pytest.mark.parametrize("sql", ["select 'a' like 'a%'", "select %s", "select %(nobody)s"])
def test_wrong_placeholder_says_how_to_write_one(queries: Write, ctx: Context, sql: str) -> None:
    queries(section(sql))
    with pytest.raises(Fail, match=r"%\(name\)s, and % as %%"):
        run(ctx, "q")


def test_all_of_a_query_is_of_one_instant(queries: Write, ctx: Context, conn: Connection) -> None:
    conn.execute("create table t (a int)")
    queries(section("select count(*) from t"))
    with reading(ctx, find_query("q", {})) as query:
        conn.execute("insert into t values (1)")
        assert query.conn.execute(query.statement).fetchall() == [(0,)]


def test_cancel_ends_a_query_that_runs(queries: Write, ctx: Context, conn: Connection) -> None:
    queries(section("select pg_sleep(50)"))
    threading.Thread(target=cancel_when_running, args=(conn, ctx)).start()
    with pytest.raises(Interrupted):
        run(ctx, "q")


def cancel_when_running(conn: Connection, ctx: Context) -> None:
    until(lambda: value(conn, "select count(*) from pg_stat_activity where wait_event = 'PgSleep'"))
    ctx.cancel(CancelReason.REQUESTED)


def test_cancel_that_comes_before_the_query_is_not_lost(queries: Write, ctx: Context) -> None:
    queries(section("select pg_sleep(50)"))
    with pytest.raises(Interrupted):
        run_late(ctx)


def run_late(ctx: Context) -> None:
    """Between two statements PostgreSQL forgets that it was asked to cancel."""
    with reading(ctx, find_query("q", {})) as query:
        ctx.cancel(CancelReason.REQUESTED)
        query.conn.execute("select 1")
        query.conn.execute(query.statement)


@pytest.mark.timeout(20)
def test_cancel_that_comes_while_it_connects_ends_the_job_and_no_thread_hangs(queries: Write, dsn: str) -> None:
    queries(section("select pg_sleep(50)"))

    def connect() -> Connection:
        own.cancel(CancelReason.REQUESTED)
        return psycopg.connect(dsn)

    runtime = FakeRuntime(connect=connect, max_result_bytes=2**20)
    own = Context(Job(1, "q", None, {}, 0, 1, 0, datetime.now(UTC)), timeout_s=None, runtime=runtime)
    with pytest.raises(Interrupted):
        run(own, "q")


def test_query_that_takes_too_long_fails_for_good(queries: Write, ctx: Context) -> None:
    queries(section("select pg_sleep(50)", more="statement_timeout = 0.05"))
    with pytest.raises(Fail, match="took longer than its statement_timeout"):
        run(ctx, "q")


def test_other_database_is_named_by_a_variable(
    queries: Write, dsn: str, monkeypatch: pytest.MonkeyPatch, conn: Connection
) -> None:
    runtime = FakeRuntime(connect=None, max_result_bytes=2**20)
    ctx = Context(Job(1, "q", None, {}, 0, 1, 0, datetime.now(UTC)), timeout_s=None, runtime=runtime)
    queries(section("select 1", more='dsn_env = "REPLICA_DSN"'))
    with pytest.raises(Fail, match="set REPLICA_DSN for the daemon"):
        run(ctx, "q")
    monkeypatch.setenv("REPLICA_DSN", dsn)
    assert run(ctx, "q") == [(1,)]


@pytest.mark.parametrize(
    ("broken", "kind"),
    [
        ("postgres//u:s3cret@host/db", Fail),
        ("postgresql://u:s3cret@127.0.0.1:1/db", DatabaseUnavailable),
        ("host=127.0.0.1 port=1 password='s3cret", Fail),
    ],
)
def test_password_of_the_other_database_is_in_no_error(
    queries: Write, ctx: Context, monkeypatch: pytest.MonkeyPatch, broken: str, kind: type[Exception]
) -> None:
    queries(section("select 1", more='dsn_env = "REPLICA_DSN"'))
    monkeypatch.setenv("REPLICA_DSN", broken)
    with pytest.raises(kind) as caught:
        run(ctx, "q")
    assert "s3cret" not in str(caught.value)
    assert caught.value.__suppress_context__
    assert "\n" not in str(caught.value)
