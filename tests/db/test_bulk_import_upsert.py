"""bulk_import with a key: what is there is updated or skipped, each row counted once, bad rows named."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from dispatcher_executors.bulk_import import BulkImportPayload
from pyarrow import parquet
from pydantic import ValidationError

from dispatcher.context import Interrupted
from dispatcher.executor import Fail, Partial
from dispatcher.job import CancelReason
from tests.db import import_runner
from tests.db.import_runner import DirectRuntime

Connection = psycopg.Connection[Any]
Row = tuple[Any, ...]


@pytest.fixture
def load(root: Path, conn: Connection, runtime: DirectRuntime) -> Callable[..., Any]:
    """Writes rows of `id` and `b` to a file, imports it in one attempt, and returns the result."""

    def write_and_run(rows: list[Row], kind: str = "csv", **options: Any) -> Any:
        write(root / f"f.{kind}", rows)
        payload = {"path": f"f.{kind}", "table": "t", "key": ["id"], **options}
        return import_runner.run(runtime, import_runner.add_job(conn, payload))

    return write_and_run


def write(path: Path, rows: list[Row]) -> None:
    match path.suffix:
        case ".csv":
            lines = [",".join("" if value is None else str(value) for value in row) for row in [("id", "b"), *rows]]
            path.write_text("\n".join(lines) + "\n")
        case ".ndjson":
            path.write_text("".join(json.dumps({"id": id, "b": b}) + "\n" for id, b in rows))
        case _:
            parquet.write_table(pa.table({"id": [row[0] for row in rows], "b": [row[1] for row in rows]}), path)


@pytest.fixture
def table(conn: Connection) -> None:
    conn.execute("create table t (id int primary key, b text check (b <> 'bad'), c text default 'kept')")
    conn.execute("insert into t values (1, 'old', 'own'), (2, 'old', 'own')")


def rows(conn: Connection) -> list[Row]:
    return conn.execute("select id, b, c from t order by id").fetchall()


def counts(result: Any) -> tuple[int, ...]:
    return tuple(result[name] for name in ("rows", "inserted", "updated", "skipped", "rejected"))


@pytest.mark.parametrize("kind", ["csv", "ndjson", "parquet"])
def test_row_that_is_there_is_updated_in_the_columns_of_the_file(
    conn: Connection, load: Callable[..., Any], table: None, kind: str
) -> None:
    result = load([(2, "new"), (3, "new"), (4, None)], kind)
    assert rows(conn) == [(1, "old", "own"), (2, "new", "own"), (3, "new", "kept"), (4, None, "kept")]
    assert counts(result) == (3, 2, 1, 0, 0)


@pytest.mark.parametrize("kind", ["csv", "ndjson", "parquet"])
def test_row_that_is_there_is_skipped(conn: Connection, load: Callable[..., Any], table: None, kind: str) -> None:
    result = load([(2, "new"), (3, "new"), (3, "again")], kind, on_conflict="skip")
    assert rows(conn) == [(1, "old", "own"), (2, "old", "own"), (3, "new", "kept")]
    assert counts(result) == (3, 1, 0, 2, 0)


@pytest.mark.parametrize("batch_rows", [1, 2, 100])
def test_last_of_several_rows_with_a_key_wins_however_they_fall_into_batches(
    conn: Connection, load: Callable[..., Any], table: None, batch_rows: int
) -> None:
    result = load([(3, "a"), (1, "b"), (3, "c"), (1, "d"), (3, "e"), (4, "f")], batch_rows=batch_rows)
    assert [row[:2] for row in rows(conn)] == [(1, "d"), (2, "old"), (3, "e"), (4, "f")]
    assert counts(result) == (6, 2, 4, 0, 0)


def test_bad_rows_are_named_and_the_rest_is_upserted(conn: Connection, load: Callable[..., Any], table: None) -> None:
    """A value that has no type, a check that only the table makes, a key that is null."""
    many: list[Row] = [(number, "new") for number in range(1, 501)]
    many[99], many[199], many[299] = ("x", "new"), (200, "bad"), (None, "new")
    partial = load(many)
    assert isinstance(partial, Partial)
    assert [error["item"]["line"] for error in partial.errors] == [101, 201, 301]
    assert "invalid input syntax for type integer" in partial.errors[0]["message"]
    assert "violates check constraint" in partial.errors[1]["message"]
    assert 'null value in column "id"' in partial.errors[2]["message"]
    assert counts(partial.result) == (497, 495, 2, 0, 3)
    assert len(rows(conn)) == 497


def test_bad_row_of_parquet_is_named_by_its_number(conn: Connection, load: Callable[..., Any], table: None) -> None:
    partial = load([(1, "new"), (2, "bad"), (3, "new")], "parquet")
    assert [error["item"]["row"] for error in partial.errors] == [2]
    assert rows(conn)[1] == (2, "old", "own")


def test_parts_around_bad_rows_keep_the_order_of_rows_with_one_key(
    conn: Connection, load: Callable[..., Any], table: None
) -> None:
    """The temporary table is emptied between the parts of one batch: else an early row would come again."""
    many: list[Row] = [(7, f"v{number}") for number in range(300)]
    for number in (50, 51, 100, 298):
        many[number] = (8, "bad")
    partial = load(many)
    assert rows(conn)[-1] == (7, "v299", "kept")
    assert counts(partial.result) == (296, 1, 295, 0, 4)


def test_row_is_written_once_although_its_batch_is_loaded_in_parts(
    conn: Connection, load: Callable[..., Any], table: None
) -> None:
    """Or triggers would run for it again and again, and a batch with many bad rows would take for ever."""
    conn.execute("create table written (id int)")
    conn.execute(
        "create function note() returns trigger language plpgsql as"
        " $$ begin insert into written values (new.id); return new; end $$"
    )
    conn.execute("create trigger note after insert or update on t for each row execute function note()")
    load([(number, "bad" if number % 50 == 0 else "new") for number in range(1, 301)])
    assert conn.execute("select count(*), count(distinct id) from written").fetchone() == (294, 294)


@pytest.mark.parametrize(
    "index",
    [
        "create index on t (id)",
        "create unique index on t (id, b)",
        "create unique index on t (b)",
        "create unique index on t (id) where id > 5",
        "create unique index on t ((id + 1))",
        "alter table t add unique (id) deferrable",
    ],
)
def test_key_that_no_unique_index_guards_fails_and_says_so(
    conn: Connection, load: Callable[..., Any], index: str
) -> None:
    conn.execute("create table t (id int, b text)")
    conn.execute(index)
    with pytest.raises(Fail, match=r"table 't' has no unique index on exactly \(id\): create one"):
        load([(1, "x")])


def test_key_of_several_columns_in_any_order(conn: Connection, load: Callable[..., Any]) -> None:
    conn.execute("create table t (id int, b text, c text)")
    conn.execute("create unique index on t (id, b) include (c)")
    result = load([(1, "x"), (1, "y"), (1, "x")], key=["b", "id"])
    assert counts(result) == (3, 2, 1, 0, 0)
    assert len(rows(conn)) == 2


def test_key_that_the_file_does_not_have_fails(conn: Connection, load: Callable[..., Any], table: None) -> None:
    with pytest.raises(Fail, match=r"the key \(c\) needs 'c' among the columns of the file"):
        load([(1, "x")], key=["c"])


def test_partitioned_table_is_upserted_and_counted(conn: Connection, load: Callable[..., Any]) -> None:
    conn.execute("create table t (id int primary key, b text, c text) partition by range (id)")
    conn.execute("create table t1 partition of t for values from (0) to (100)")
    load([(1, "x")])
    assert counts(load([(1, "y"), (2, "y"), (2, "z")])) == (3, 1, 2, 0, 0)
    assert [row[:2] for row in rows(conn)] == [(1, "y"), (2, "z")]


def test_identity_column_can_be_the_key(conn: Connection, load: Callable[..., Any]) -> None:
    conn.execute("create table t (id int generated always as identity primary key, b text, c text)")
    assert counts(load([(5, "x"), (5, "y")])) == (2, 1, 1, 0, 0)
    assert rows(conn) == [(5, "y", None)]


def test_missing_privilege_fails_in_one_line(
    conn: Connection, load: Callable[..., Any], superuser_dsn: str, dsn: str
) -> None:
    user = conn.info.user
    with psycopg.connect(superuser_dsn, autocommit=True) as superuser:
        superuser.execute("create table t (id int primary key, b text)")
        superuser.execute(f'grant insert on t to "{user}"')
        with pytest.raises(Fail, match="permission denied for table t"):
            load([(1, "x")])
        superuser.execute(f'grant select on t to "{user}"')
        with pytest.raises(Fail, match="permission denied for table t"):
            load([(1, "x")])
        superuser.execute(f'grant update on t to "{user}"')
        assert load([(1, "x")])["inserted"] == 1


def test_counts_go_on_after_an_interruption(conn: Connection, root: Path, runtime: DirectRuntime, table: None) -> None:
    write(root / "f.csv", [(number, "new") for number in range(1, 101)])
    job = import_runner.add_job(conn, {"path": "f.csv", "table": "t", "key": ["id"], "batch_rows": 10})
    ctx = import_runner.context(runtime, job)
    runtime.after_progress = lambda: ctx.cancel(CancelReason.SHUTDOWN)
    with pytest.raises(Interrupted):
        import_runner.run(runtime, job, ctx)
    assert len(rows(conn)) == 10
    runtime.after_progress = lambda: None
    assert counts(import_runner.run(runtime, job)) == (100, 98, 2, 0, 0)


def test_two_imports_of_the_same_rows_in_opposite_order_do_not_deadlock(
    conn: Connection, root: Path, dsn: str, table: None
) -> None:
    conn.execute("insert into t select generate_series(3, 20000)")
    many: list[Row] = [(number, "new") for number in range(1, 20_001)]
    write(root / "up.csv", many)
    write(root / "down.csv", many[::-1])
    together = threading.Barrier(2)
    results: list[Any] = []

    def run(name: str) -> None:
        for _ in range(3):
            with psycopg.connect(dsn, autocommit=True) as own:
                payload = {"path": name, "table": "t", "key": ["id"], "batch_rows": 20_000}
                job = import_runner.add_job(own, payload)
            together.wait(20)
            results.append(import_runner.run(DirectRuntime(dsn), job))

    threads = [threading.Thread(target=run, args=[name]) for name in ("up.csv", "down.csv")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [counts(result) for result in results] == [(20_000, 0, 20_000, 0, 0)] * 6


@pytest.mark.parametrize(
    "wrong", [{"key": []}, {"on_conflict": "skip"}, {"key": ["a"], "on_conflict": "x"}, {"key": ["a", "a"]}]
)
def test_payload_that_makes_no_sense_is_refused_before_it_runs(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BulkImportPayload.model_validate({"path": "f.csv", "table": "t", **wrong})
