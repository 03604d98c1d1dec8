"""bulk_import of Parquet: values arrive as they are, each row once whatever dies, bad rows named by their number."""

import datetime as dt
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pyarrow as pa
import pytest
from pyarrow import parquet

from dispatcher.context import Interrupted
from dispatcher.executor import Fail, Partial
from dispatcher.job import CancelReason
from tests.db import import_runner
from tests.db.import_runner import DirectRuntime

ID = UUID("12345678-1234-5678-1234-567812345678")
Connection = psycopg.Connection[Any]


@pytest.fixture
def load(root: Path, conn: Connection, runtime: DirectRuntime) -> Callable[..., Any]:
    """Writes a file, imports it in one attempt, and returns the result."""

    def write_and_run(data: dict[str, Any], *, group: int = 100, **options: Any) -> Any:
        write(root, data, group)
        return import_runner.run(runtime, import_runner.add_job(conn, {"path": "f.parquet", "table": "t", **options}))

    return write_and_run


def write(root: Path, columns: dict[str, Any], group: int = 100) -> None:
    parquet.write_table(pa.table(columns), root / "f.parquet", row_group_size=group)


def rows_of(partial: Partial) -> list[int]:
    return [error["item"]["row"] for error in partial.errors]


def one(conn: Connection, query: str) -> Any:
    row = conn.execute(query).fetchone()
    assert row
    return row[0] if len(row) == 1 else row


def test_values_arrive_as_they_are_and_nulls_apart_from_empty_texts(conn: Connection, load: Callable[..., Any]) -> None:
    noon = dt.datetime(2013, 1, 1, 12, 0, 0, 123456, tzinfo=dt.UTC)
    rounded = noon.replace(microsecond=123457, tzinfo=None)
    columns: dict[str, tuple[Any, str, Any]] = {
        "i": (pa.array([2**62, None]), "bigint", 2**62),
        "u": (pa.array([2**64 - 1, None], pa.uint64()), "numeric", Decimal(2**64 - 1)),
        "f": (pa.array([0.1, None]), "float8", 0.1),
        "h": (pa.array([0.5, None], pa.float16()), "real", 0.5),
        "n": (pa.array([float("nan"), None]), "float8", "NaN"),
        "b": (pa.array([True, None]), "boolean", True),
        "s": (pa.array(['say "hi",\r\n\\.\n\\N', None]), "text", 'say "hi",\r\n\\.\n\\N'),
        "e": (pa.array(["", None]), "text", ""),
        "c": (pa.array(["é", None]).dictionary_encode(), "text", "é"),
        "l": (pa.array(["x", None], pa.large_string()), "varchar(3)", "x"),
        "d": (pa.array([Decimal("1234567890123456789.10"), None]), "numeric", Decimal("1234567890123456789.10")),
        "x": (pa.array([b"\x00\xff", None]), "bytea", b"\x00\xff"),
        "y": (pa.array([b"text", None]), "text", "text"),
        "day": (pa.array([dt.date(2013, 1, 1), None]), "date", dt.date(2013, 1, 1)),
        "at": (pa.array([noon.replace(tzinfo=None), None]), "timestamp", noon.replace(tzinfo=None)),
        "tz": (pa.array([noon, None], pa.timestamp("us", "America/New_York")), "timestamptz", noon),
        "ns": (pa.array([1357041600123456789, None], pa.timestamp("ns")), "timestamp", rounded),
        "t": (pa.array([dt.time(5, 30), None]), "time", dt.time(5, 30)),
        "v": (pa.array([dt.timedelta(days=1, microseconds=5), None]), "interval", dt.timedelta(days=1, microseconds=5)),
        "z": (pa.nulls(2), "int", None),
        "id": (pa.array([ID.bytes, None], pa.uuid()), "uuid", ID),
        "fix": (pa.array([ID.bytes, None], pa.binary(16)), "uuid", ID),
        "dom": (pa.array([b"\x01", None]), "raw", b"\x01"),
    }  # fmt: skip
    conn.execute("create domain raw as bytea")
    conn.execute("create table t (" + ", ".join(f'"{name}" {type}' for name, (_, type, _) in columns.items()) + ")")
    result = load({name: array for name, (array, _, _) in columns.items()})
    assert (result["rows"], result["rejected"]) == (2, 0)
    first, second = conn.execute("select * from t order by i").fetchall()
    expected = [value for _, _, value in columns.values()]
    assert [str(got) if want == "NaN" else got for got, want in zip(first, expected, strict=True)] == [
        "nan" if want == "NaN" else want for want in expected
    ]
    assert set(second) == {None}


def test_nested_values_become_json_with_all_their_digits(conn: Connection, load: Callable[..., Any]) -> None:
    conn.execute("create table t (a jsonb, b jsonb, c text, d json)")
    nested = pa.array([{"k": Decimal("1.10"), "at": dt.date(2013, 1, 1), "x": None}])
    mapping = pa.array([[(1, "é\n")]], pa.map_(pa.int32(), pa.string()))
    load({"a": nested, "b": mapping, "c": pa.array([[1, None, 3]]), "d": pa.array(['{"as": "it is"}'])})
    assert one(conn, "select a::text, b, c, d::text from t") == (
        '{"k": 1.10, "x": null, "at": "2013-01-01"}',
        {"1": "é\n"},
        "[1, null, 3]",
        '{"as": "it is"}',
    )


def test_nested_value_for_a_column_that_holds_none_fails_before_a_row_is_loaded(
    conn: Connection, load: Callable[..., Any]
) -> None:
    conn.execute("create table t (a int)")
    with pytest.raises(Fail, match="column 'a' of the file is nested: its column must be json, jsonb or text"):
        load({"a": pa.array([[1]])})


def test_columns_are_picked_and_renamed(conn: Connection, load: Callable[..., Any]) -> None:
    conn.execute("create table t (a int, b text default 'kept')")
    load({"n.1": pa.array([1]), "other": pa.array(["x"])}, columns={"n.1": "a"})
    assert one(conn, "select a, b from t") == (1, "kept")
    with pytest.raises(Fail, match=r"the file has no column 'z'; it has n\.1"):
        load({"n.1": pa.array([1])}, columns=["z"])
    with pytest.raises(Fail, match="has no column 'zz'"):
        load({"zz": pa.array([1])})


def test_bad_rows_are_named_by_their_number_and_the_rest_is_loaded(conn: Connection, load: Callable[..., Any]) -> None:
    conn.execute("create table t (a smallint, b text check (b <> 'bad'))")
    texts: list[Any] = [b"line\nbreak"] * 1000
    texts[500], texts[999] = b"\xff", b"nul\0"
    texts[10] = b"bad"
    numbers = list(range(1000))
    numbers[3] = 70_000
    partial = load({"a": pa.array(numbers), "b": pa.array(texts, pa.binary())}, batch_rows=300)
    assert rows_of(partial) == [4, 11, 501, 1000]
    assert partial.errors[0]["message"] == 'value "70000" is out of range for type smallint'
    assert partial.errors[0]["item"] == {"row": 4, "column": "a", "text": '70000,"line\nbreak"'}
    assert (partial.result["rows"], partial.result["rejected"]) == (996, 4)


def test_errors_are_capped_and_the_rest_is_counted(conn: Connection, load: Callable[..., Any]) -> None:
    conn.execute("create table t (a smallint)")
    partial = load({"a": pa.array([1] * 50 + [70_000] * 50)}, max_errors=3)
    assert rows_of(partial) == [51, 52, 53]
    assert partial.result["rejected"] == 50
    with pytest.raises(Fail, match="none of 5 rows could be loaded; row 1: value"):
        load({"a": pa.array([70_000] * 5)})


def test_file_without_rows_is_no_failure(conn: Connection, load: Callable[..., Any]) -> None:
    conn.execute("create table t (a int)")
    assert load({"a": pa.array([], pa.int32())})["rows"] == 0


@pytest.mark.parametrize("content", [b"", b"PAR1", b"a,b\n1,x\n", b"PAR1" + b"x" * 100 + b"PAR1"])
def test_file_that_is_no_parquet_fails_for_good(
    conn: Connection, root: Path, runtime: DirectRuntime, content: bytes
) -> None:
    conn.execute("create table t (a int)")
    (root / "f.parquet").write_bytes(content)
    with pytest.raises(Fail, match=r"'f\.parquet' is no Parquet file: "):
        import_runner.run(runtime, import_runner.add_job(conn, {"path": "f.parquet", "table": "t"}))


def test_damaged_page_fails_after_what_was_good(conn: Connection, root: Path, runtime: DirectRuntime) -> None:
    conn.execute("create table t (a bigint)")
    write(root, {"a": pa.array(range(50_000))}, 10_000)
    path = root / "f.parquet"
    data = bytearray(path.read_bytes())
    start = parquet.ParquetFile(path).metadata.row_group(3).column(0).dictionary_page_offset
    data[start : start + 2000] = b"\xff" * 2000
    path.write_bytes(data)
    with pytest.raises(Fail, match="is damaged or cut off after row 30000"):
        import_runner.run(
            runtime, import_runner.add_job(conn, {"path": "f.parquet", "table": "t", "batch_rows": 10_000})
        )
    assert one(conn, "select count(*) from t") == 30_000


def test_without_pyarrow_it_says_what_to_install(
    conn: Connection, load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    conn.execute("create table t (a int)")
    monkeypatch.delitem(sys.modules, "dispatcher_executors.import_parquet", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(Fail, match=r"needs pyarrow: install pg-dispatcher\[parquet\]"):
        load({"a": pa.array([1])})


@pytest.mark.parametrize("place", ["batch", "checkpoint"])
@pytest.mark.parametrize("group", [250, 700, 10_000])
def test_each_row_is_loaded_once_however_often_the_process_is_killed(
    conn: Connection, dsn: str, root: Path, runtime: DirectRuntime, place: str, group: int
) -> None:
    """Killed after a batch's commit, and between its checkpoint and its commit; in the middle of row groups, too."""
    conn.execute("create table t (a int, b text)")  # without a key: a row loaded twice would stay
    count = 3000
    bad = [100, 1600]
    texts = ["nul\0" if number in bad else "x\ny" for number in range(count)]
    write(root, {"a": pa.array(range(count)), "b": pa.array(texts)}, group)
    job = import_runner.add_job(conn, {"path": "f.parquet", "table": "t", "batch_rows": 300})
    for visit in (1, 2, 1, 3):
        command = [sys.executable, "-m", "tests.db.import_runner", dsn, str(job), place, str(visit)]
        runner = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert runner.stdout
        assert runner.stdout.readline() == "here\n"
        runner.kill()
        runner.communicate()
        conn.execute("update dispatcher.job set attempt = attempt + 1 where id = %s", [job])
    partial = import_runner.run(runtime, job)
    loaded = [row[0] for row in conn.execute("select a from t order by a")]
    assert loaded == [number for number in range(count) if number not in bad]
    assert rows_of(partial) == [number + 1 for number in bad]
    assert min(runtime.progress) > 0
    assert runtime.progress[-1] == 100


def test_file_that_differs_only_in_its_middle_and_footer_is_not_gone_on_with(
    conn: Connection, root: Path, runtime: DirectRuntime
) -> None:
    conn.execute("create table t (a int)")
    write(root, {"a": pa.array([1, 2])})
    job = import_runner.add_job(conn, {"path": "f.parquet", "table": "t", "batch_rows": 1})
    ctx = import_runner.context(runtime, job)
    runtime.after_progress = lambda: ctx.cancel(CancelReason.SHUTDOWN)
    with pytest.raises(Interrupted):
        import_runner.run(runtime, job, ctx)
    write(root, {"a": pa.array([1, 3])})
    with pytest.raises(Fail, match="has changed since its first 1 rows were loaded"):
        import_runner.run(runtime, job)


def test_row_group_of_300_megabytes_is_read_in_little_memory(conn: Connection, root: Path, dsn: str) -> None:
    conn.execute("create table t (a int, b text)")
    schema = pa.schema([("a", pa.int32()), ("b", pa.string())])
    text = "x" * 10_000
    table = pa.table({"a": pa.array(range(30_000), pa.int32()), "b": [f"{n}{text}" for n in range(30_000)]}, schema)
    parquet.write_table(table, root / "f.parquet", row_group_size=30_000, use_dictionary=False)
    del table
    job = import_runner.add_job(conn, {"path": "f.parquet", "table": "t", "columns": ["a", "b"]})
    code = (
        "import re, sys; from pathlib import Path; from tests.db.import_runner import *;"
        "r = run(DirectRuntime(sys.argv[1]), int(sys.argv[2]));"
        # Not ru_maxrss: that of a process counts what it was forked from.
        "peak = re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1];"
        "print(r['rows'], peak)"
    )
    answer = subprocess.run([sys.executable, "-c", code, dsn, str(job)], capture_output=True, text=True, check=True)
    rows, peak_kib = map(int, answer.stdout.split())
    assert rows == 30_000
    assert peak_kib < 280_000  # of which 90,000 before the file is opened
