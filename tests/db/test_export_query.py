"""export_query: what the database has arrives in the file, exactly; what breaks off leaves none."""

import csv
import gzip
import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import psycopg
import pyarrow.parquet as pq
import pytest
from dispatcher_executors import export_query as module
from dispatcher_executors.export_query import ExportQueryPayload
from pydantic import ValidationError

from dispatcher.job import CancelReason, JobInfo, State
from dispatcher.testing import Queue, run_inline
from tests.db.running import until, value

Connection = psycopg.Connection[Any]
Export = Callable[..., Any]


@pytest.fixture
def queries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Gives the administrator's file the one query `q`."""
    file = tmp_path / "queries.toml"
    monkeypatch.setenv("DISPATCHER_QUERIES", str(file))

    def write(sql: str, params: str = "") -> None:
        file.write_text(f"[q]\nsql = {json.dumps(sql)}\nparams = {{{params}}}\n", encoding="utf-8")

    return write


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def queue(dsn: str, store: Path) -> Iterator[Queue]:
    with Queue(dsn, [module], result_store=str(store)) as queue:
        yield queue


@pytest.fixture
def export(queue: Queue, queries: Callable[..., None]) -> Export:
    """Runs an export of a query on a real queue; its job and the bytes of the file."""

    def run(sql: str, params: str = "", values: dict[str, Any] | None = None, **payload: Any) -> tuple[JobInfo, bytes]:
        queries(sql, params)
        queue.enqueue("export_query", {"query": "q", "params": values or {}, **payload})
        [job] = queue.drain()
        assert job.state is State.SUCCEEDED, job.errors
        assert job.result["url"] == job.result_url
        data = Path(unquote(urlsplit(job.result["url"]).path)).read_bytes()
        assert job.result["bytes"] == len(data)
        return job, data

    return run


def files(store: Path) -> list[str]:
    return [path.name for path in store.rglob("*") if path.is_file()]


# CSV


def test_csv_keeps_null_and_empty_text_apart_and_quotes_what_it_must(export: Export) -> None:
    values = """(1, 'a,"b"'), (2, ''), (3, null), (4, e'x\\ny')"""
    job, data = export(f'select * from (values {values}) as t (a, "b c") order by a')
    assert data.decode() == 'a,b c\n1,"a,""b"""\n2,""\n3,\n4,"x\ny"\n'
    assert job.result["rows"] == 4
    assert job.result["format"] == "csv"
    assert job.result["columns"] == [{"name": "a", "type": "int4"}, {"name": "b c", "type": "text"}]


def test_csv_with_options_and_gzip(export: Export) -> None:
    job, data = export("select 1, null, true", header=False, delimiter="\t", null="NA", gzip=True)
    assert gzip.decompress(data) == b"1\tNA\tt\n"
    assert job.result_url.endswith("/q.csv.gz")
    assert job.result["rows"] == 1


def test_no_rows_make_a_file_with_a_header(export: Export) -> None:
    job, data = export("select 1 as a where false")
    assert (job.result["rows"], data) == (0, b"a\n")


def test_parameters_are_data(export: Export, conn: Connection) -> None:
    conn.execute("create table t (a text)")
    hostile = "'; drop table t; --\\"
    _, data = export("select %(v)s as v", 'v = "text"', {"v": hostile})
    assert list(csv.reader(io.StringIO(data.decode()))) == [["v"], [hostile]]
    assert value(conn, "select to_regclass('t') is not null")


def test_dates_do_not_depend_on_the_role(export: Export, dsn: str, conn: Connection) -> None:
    name = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    for setting in ("datestyle = 'German'", "timezone = 'Asia/Tokyo'"):
        conn.execute(f"alter database {name} set {setting}")
    _, data = export("select date '2013-01-31' as d, timestamptz '2013-01-31 12:00+00' as t")
    assert data == b"d,t\n2013-01-31,2013-01-31 12:00:00+00\n"


# NDJSON


def test_ndjson_is_exact(export: Export) -> None:
    number = "12345678901234567890.123456789012345678901234567890"
    _, data = export(
        f"select {number}::numeric as n, 0.1::float8 as f, null as z, true as y, 9007199254740993 as big,"
        r"""e'q"\\n\n\u0001\u0002é' as t, timestamptz '2013-01-31 12:00+02' as at, array[1, null] as l"""
        ", date '2013-01-31' as d",
        format="ndjson",
    )
    assert data.count(b"\n") == 1
    row = json.loads(data, parse_float=Decimal)
    assert row == {
        "n": Decimal(number),
        "f": Decimal("0.1"),
        "z": None,
        "y": True,
        "big": 9007199254740993,
        "t": 'q"\\n\n\x01\x02é',
        "at": "2013-01-31T10:00:00+00:00",
        "l": [1, None],
        "d": "2013-01-31",
    }
    assert list(row) == ["n", "f", "z", "y", "big", "t", "at", "l", "d"]


def test_json_with_line_breaks_stays_on_its_line(export: Export) -> None:
    """The type json keeps the text as it came."""
    broken = r"""e'{\n "a":\r\n [1]}'::json as j, array[e'[\n]'::json] as l"""
    job, data = export(f"select n, {broken} from generate_series(1, 3) n", format="ndjson")
    rows = [json.loads(line) for line in data.splitlines()]
    assert rows == [{"n": n, "j": {"a": [1]}, "l": [[]]} for n in (1, 2, 3)]
    assert job.result["rows"] == 3


@pytest.mark.parametrize("kind", ["ndjson", "parquet"])
def test_two_columns_of_one_name_are_refused_where_one_would_be_lost(
    queue: Queue, queries: Callable[[str], None], store: Path, kind: str
) -> None:
    queries("select 1 as a, 2 as a")
    queue.enqueue("export_query", {"query": "q", "format": kind})
    [job] = queue.drain()
    assert job.state is State.FAILED
    assert "has 2 columns named 'a'" in job.errors[0]["message"]
    assert files(store) == []


def test_column_named_like_the_alias_does_not_take_the_rows_place(export: Export) -> None:
    _, data = export("select 1 as query, 2 as b", format="ndjson")
    assert json.loads(data) == {"query": 1, "b": 2}
    _, data = export("select 1 as query, 2 as b", format="parquet")
    assert pq.read_table(io.BytesIO(data)).to_pylist() == [{"query": 1, "b": 2}]


# Parquet

COLUMNS = {
    "smallint '-5'": ("int16", -5),
    "2147483647": ("int32", 2147483647),
    "9223372036854775807": ("int64", 9223372036854775807),
    "1.5::float4": ("float", 1.5),
    "0.1::float8": ("double", 0.1),
    "12345678901234567890.12::numeric(38, 2)": ("decimal128(38, 2)", Decimal("12345678901234567890.12")),
    "1.10::numeric": ("string", "1.10"),
    "1.10::numeric(50, 2)": ("string", "1.10"),
    "1200::numeric(3, -2)": ("string", "1200"),
    "'é'::text": ("string", "é"),
    "'ab'::varchar(5)": ("string", "ab"),
    "'ab'::char(3)": ("string", "ab "),
    "true": ("bool", True),
    "date '2013-01-31'": ("date32[day]", date(2013, 1, 31)),
    "time '12:30:00.000001'": ("time64[us]", time(12, 30, 0, 1)),
    "timestamp '2013-01-31 12:00:00.123456'": ("timestamp[us]", datetime(2013, 1, 31, 12, 0, 0, 123456)),  # noqa: DTZ001
    "timestamptz '2013-01-31 12:00+02'": ("timestamp[us, tz=UTC]", datetime(2013, 1, 31, 10, tzinfo=UTC)),
    "'6f1c5d1e-0000-4000-8000-000000000000'::uuid": ("string", "6f1c5d1e-0000-4000-8000-000000000000"),
    """'{"b": 1}'::jsonb""": ("string", '{"b": 1}'),
    """'{"b":1}'::json""": ("string", '{"b":1}'),
    "'\\x00ff'::bytea": ("binary", b"\x00\xff"),
    "array[1, null]::int[]": ("list<element: int32>", [1, None]),
    "array['a,b', '']": ("list<element: string>", ["a,b", ""]),
    "array[1.5, 2.25]": ("list<element: string>", ["1.5", "2.25"]),
    "array['6f1c5d1e-0000-4000-8000-000000000000'::uuid]": (
        "list<element: string>",
        ["6f1c5d1e-0000-4000-8000-000000000000"],
    ),
    "interval '1 day'": ("string", "P1D"),
    "inet '10.0.0.1'": ("string", "10.0.0.1/32"),
    "row(1, 'a')": ("string", "(1,a)"),
    "null": ("string", None),
}


@pytest.mark.parametrize("expression", COLUMNS)
def test_parquet_has_typed_columns(export: Export, expression: str) -> None:
    rows = f"(select {expression} as v, 1 as n) one right join generate_series(1, 2) n using (n)"
    job, data = export(f"select v from {rows} order by n", format="parquet")
    table = pq.read_table(io.BytesIO(data))
    kind, expected = COLUMNS[expression]
    assert str(table.schema.field("v").type) == kind
    assert table.column("v").to_pylist() == [expected, None]
    assert job.result["rows"] == 2


@pytest.mark.parametrize(
    "expression", ["'NaN'::numeric(5, 2)", "array[array[1, 2]]", "date 'infinity'", "timestamp '-infinity'"]
)
def test_value_that_parquet_cannot_hold_fails_for_good_and_leaves_no_file(
    queue: Queue, queries: Callable[[str], None], store: Path, expression: str
) -> None:
    queries(f"select 1 as a, {expression} as v")
    queue.enqueue("export_query", {"query": "q", "format": "parquet"})
    [job] = queue.drain()
    assert (job.state, job.attempt) == (State.FAILED, 1)
    assert "\n" not in job.errors[0]["message"]
    assert files(store) == []


def test_row_groups_are_bounded_by_rows_and_by_bytes(export: Export) -> None:
    job, data = export("select n from generate_series(1, 300000) n", format="parquet")
    file = pq.ParquetFile(io.BytesIO(data))
    assert file.metadata.num_row_groups == 3
    assert job.result["rows"] == file.metadata.num_rows == 300_000
    assert file.read().column("n").to_pylist() == list(range(1, 300_001))
    _, data = export("select repeat(n::text, 1000000) as t from generate_series(1, 200) n", format="parquet")
    assert pq.ParquetFile(io.BytesIO(data)).metadata.num_row_groups > 2


def test_parquet_of_no_rows_has_its_columns(export: Export) -> None:
    job, data = export("select 1 as a, 'b' as b where false", format="parquet")
    table = pq.read_table(io.BytesIO(data))
    assert (table.num_rows, table.column_names, job.result["rows"]) == (0, ["a", "b"], 0)


# What goes wrong


@pytest.mark.parametrize("kind", ["csv", "ndjson", "parquet"])
def test_error_half_way_leaves_no_file(queue: Queue, queries: Callable[[str], None], store: Path, kind: str) -> None:
    queries("select 1 / (400000 - n) as v, repeat('x', 50) as t from generate_series(1, 500000) n")
    queue.enqueue("export_query", {"query": "q", "format": kind})
    [job] = queue.drain()
    assert (job.state, job.attempt) == (State.FAILED, 1)
    assert job.errors[0]["message"] == "query 'q': division by zero"
    assert files(store) == []


@pytest.mark.parametrize(
    "sql", ["select pg_sleep(50)", "select n, pg_sleep(n / 100000) from generate_series(1, 10000000) n"]
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_cancel_ends_a_running_query_at_once_and_leaves_no_file(
    dsn: str, conn: Connection, queries: Callable[[str], None], store: Path, sql: str, kind: str
) -> None:
    queries(sql)
    with Queue(dsn, [module], result_store=str(store)) as queue:
        id = queue.enqueue("export_query", {"query": "q", "format": kind})
        worker = threading.Thread(target=queue.drain)
        worker.start()
        until(lambda: value(conn, "select count(*) from pg_stat_activity where wait_event = 'PgSleep'"))
        [execution] = queue._inflight.executing
        assert execution.ctx is not None
        execution.ctx.cancel(CancelReason.REQUESTED)
        worker.join(10)
        assert not worker.is_alive()
        assert queue.client.get(id).state is State.CANCELED
    assert files(store) == []


def test_lost_connection_is_tried_again(queue: Queue, queries: Callable[[str], None], conn: Connection) -> None:
    queries("select pg_sleep(50)")
    id = queue.enqueue("export_query", {"query": "q"})
    worker = threading.Thread(target=queue.drain)
    worker.start()
    asleep = "select count(pg_terminate_backend(pid)) from pg_stat_activity where wait_event = 'PgSleep'"
    until(lambda: value(conn, asleep))
    worker.join(10)
    job = queue.client.get(id)
    assert (job.state, job.failures) == (State.SCHEDULED, 1)


def test_parquet_without_its_library_says_what_to_install(
    queue: Queue, queries: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "dispatcher_executors.export_parquet", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    queries("select 1 as a")
    queue.enqueue("export_query", {"query": "q", "format": "parquet"})
    [job] = queue.drain()
    assert (job.state, job.attempt) == (State.FAILED, 1)
    assert job.errors[0]["message"] == "the format parquet needs pyarrow: install pg-dispatcher[parquet]"


def test_wrong_parameter_fails_at_once(queue: Queue, queries: Callable[..., None]) -> None:
    queries("select %(n)s", 'n = "int"')
    queue.enqueue("export_query", {"query": "q", "params": {"n": "x"}})
    [job] = queue.drain()
    assert (job.state, job.attempt) == (State.FAILED, 1)
    assert job.errors[0]["message"] == "query 'q': the parameter 'n' must be a whole number of at most 64 bits"


def test_progress_rises_with_the_rows(queries: Callable[[str], None], dsn: str) -> None:
    queries("select n, repeat('x', 100) from generate_series(1, 100000) n")
    ended = run_inline(module.export_query, {"query": "q"}, connect=lambda: psycopg.connect(dsn))
    assert ended.state is State.SUCCEEDED
    percents = [percent for percent, _ in ended.progress]
    assert percents == sorted(percents)
    assert ended.progress[-1][1] == "100000 rows"
    assert len(percents) > 5


@pytest.mark.parametrize(
    "payload",
    [
        {"name": "../x.csv"},
        {"name": "a/b"},
        {"name": ".hidden"},
        {"name": "result.json"},
        {"name": ""},
        {"format": "xlsx"},
        {"format": "parquet", "gzip": True},
        {"delimiter": '"'},
        {"delimiter": "ab"},
        {"null": "a,b"},
        {"sql": "select 1"},
    ],
)
def test_payload_that_makes_no_sense_is_refused(payload: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ExportQueryPayload.model_validate({"query": "q", **payload})


@pytest.mark.parametrize("query", ["../../etc/passwd", "a b", "ü", ".", "x" * 300])
def test_file_is_named_after_any_query(query: str) -> None:
    name = ExportQueryPayload.model_validate({"query": query}).file_name
    assert name.endswith(".csv")
    assert "/" not in name
    assert not name.startswith(".")
    assert len(name) < 150
