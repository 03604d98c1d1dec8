"""bulk_import: each row once whatever dies, bad rows named by their line, no file but those allowed."""

import gzip
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from dispatcher_executors import import_file, import_table
from dispatcher_executors.bulk_import import BulkImportPayload
from dispatcher_executors.import_file import Source
from pydantic import ValidationError

from dispatcher.context import Interrupted
from dispatcher.errors import AttemptLost
from dispatcher.executor import Fail, Partial
from dispatcher.job import CancelReason
from tests.db import import_runner
from tests.db.import_runner import DirectRuntime

Connection = psycopg.Connection[Any]


@pytest.fixture
def load(root: Path, conn: Connection, runtime: DirectRuntime) -> Callable[..., Any]:
    """Writes a file, imports it in one attempt, and returns the result."""

    def write_and_run(content: str | bytes, name: str = "f.csv", table: str = "t", **options: Any) -> Any:
        data = content.encode() if isinstance(content, str) else content
        (root / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        job = import_runner.add_job(conn, {"path": name, "table": table, **options})
        return import_runner.run(runtime, job)

    return write_and_run


def make_table(conn: Connection, columns: str = "a int, b text", name: str = "t") -> None:
    conn.execute(f"create table {name} ({columns})")


def rows(conn: Connection, table: str = "t") -> list[tuple[Any, ...]]:
    return conn.execute(f"select * from {table} order by 1").fetchall()


def lines_of(partial: Partial) -> list[int]:
    return [error["item"]["line"] for error in partial.errors]


# What a file can hold


def test_null_and_empty_text_stay_apart(conn: Connection, load: Callable[..., Any]) -> None:
    make_table(conn)
    result = load('a,b\n1,\n2,""\n3,x\n4,"say ""hi"", you"\n')
    assert rows(conn) == [(1, None), (2, ""), (3, "x"), (4, 'say "hi", you')]
    assert result["rows"] == 4
    assert result["rejected"] == 0


def test_text_for_null_delimiter_and_gzip(conn: Connection, load: Callable[..., Any], runtime: DirectRuntime) -> None:
    make_table(conn)
    load("b;a\nx;1\nNA;2\n", "f.CSV.gz".lower(), delimiter=";", null="NA")
    assert rows(conn) == [(1, "x"), (2, None)]
    assert runtime.progress[-1] == 100


@pytest.mark.parametrize("columns", [["b", "a"], {"b": "b", "a": "a"}])
def test_some_of_the_columns_are_cut_out_of_quoted_records(
    conn: Connection, load: Callable[..., Any], columns: Any
) -> None:
    make_table(conn)
    load('a,skip,b\n1,"x,""\n,",""\n2,y,"p,\nq"\n3,,\n', columns=columns)
    assert rows(conn) == [(1, ""), (2, "p,\nq"), (3, None)]


def test_columns_are_renamed_by_a_mapping(conn: Connection, load: Callable[..., Any]) -> None:
    make_table(conn, '"odd ""name" int, b text default \'kept\'')
    load("Number,other\n1,x\n", columns={"Number": 'odd "name'})
    assert rows(conn) == [(1, "kept")]


@pytest.mark.parametrize(("options", "expected"), [({}, (1, "x")), ({"columns": ["b", "a"]}, (1, "x"))])
def test_file_without_header(
    conn: Connection, load: Callable[..., Any], options: dict[str, Any], expected: tuple[int, str]
) -> None:
    make_table(conn)
    load("x,1\n" if options else "1,x\n", header=False, **options)
    assert rows(conn) == [expected]


def test_line_ends_of_all_sorts_byte_order_mark_and_blank_lines(conn: Connection, load: Callable[..., Any]) -> None:
    make_table(conn)
    result = load(b'\xef\xbb\xbfa,b\r\n1,x\r\n\r\n2,y\n\n3,"p\r\nq"\r\n4,z')
    assert rows(conn) == [(1, "x"), (2, "y"), (3, "p\r\nq"), (4, "z")]
    assert result["rows"] == 4


def test_end_of_copy_marker_in_the_data_ends_nothing(conn: Connection, load: Callable[..., Any]) -> None:
    """Alone on a line it would end the COPY in silence, and the rows behind it would be lost."""
    make_table(conn, "b text")
    result = load('b\nx\n\\.\ny\n"\n\\.\n"\nz\n')
    assert {row[0] for row in rows(conn)} == {"x", "\\.", "y", "\n\\.\n", "z"}
    assert result["rows"] == 5


def test_ndjson_values_arrive_as_written(conn: Connection, load: Callable[..., Any]) -> None:
    make_table(conn, "a numeric, b text, c boolean, d jsonb, e float8")
    number = "12345678901234567890.123456789012345678901234567890"
    content = (
        f'{{"a": {number}, "b": "q\\"\\n,\\\\.", "c": true, "d": {{"k": [{number}, "é", null]}}, "e": 1e3}}\n'
        '{"a": 9007199254740993, "b": "", "d": "text"}\n\n'
    )
    load(content, "f.ndjson.gz")
    first, second = conn.execute("select a::text, b, c, d::text, e from t order by 1").fetchall()
    assert first == (number, 'q"\n,\\.', True, f'{{"k": [{number}, "é", null]}}', 1000.0)
    assert second[:3] == ("9007199254740993", "", None)


def test_progress_rises_with_the_bytes_read(conn: Connection, load: Callable[..., Any], runtime: DirectRuntime) -> None:
    make_table(conn)
    load("a,b\n" + "".join(f"{i},{i:08}\n" for i in range(200_000)), batch_rows=20_000)
    assert len(runtime.progress) == 10
    assert runtime.progress == sorted(runtime.progress)
    assert 5 < runtime.progress[0] < 70
    assert runtime.progress[-1] == 100


# Bad rows

BAD = (
    b"a,b\n"  # 1
    b'1,"two\n'  # 2
    b'lines"\n'  # 3
    b"x,not a number\n"  # 4
    b"2,fine\n"  # 5
    b"3\n"  # 6: too few
    b"4,too,many\n"  # 7
    b"5,\xff\n"  # 8
    b"6,nul\0\n"  # 9
    b'7,"multi\n\nline,\n'  # 10 to 12
    b'",more\n'  # 13
    b"8,fine\n"  # 14
    b"9,stray\rreturn\n"  # 15
    b"99999999999,out of range\n"  # 16
    b'10,"fine\r\n'  # 17
    b'"\n'  # 18
)


@pytest.mark.parametrize("batch_rows", [10_000, 3, 1])
@pytest.mark.parametrize("columns", [None, ["a", "b"], {"a": "a"}])
def test_bad_rows_are_named_by_their_physical_line_and_the_others_load(
    conn: Connection, load: Callable[..., Any], batch_rows: int, columns: Any
) -> None:
    make_table(conn)
    partial = load(BAD, batch_rows=batch_rows, columns=columns)
    assert isinstance(partial, Partial)
    expected = [4, 6, 7, 8, 9, 10, 15, 16]
    loaded = [1, 2, 8, 10]
    if isinstance(columns, dict):  # the column with the stray return is not loaded
        expected.remove(15)
        loaded.insert(3, 9)
    assert [row[0] for row in rows(conn)] == loaded
    assert sorted(lines_of(partial)) == expected
    assert partial.result["rejected"] == len(expected)
    assert partial.result["rows"] + len(expected) == 12
    by_line = {error["item"]["line"]: error for error in partial.errors}
    assert by_line[4]["kind"] == "row"
    assert "invalid input syntax for type integer" in by_line[4]["message"]
    assert by_line[4]["item"]["column"] == "a"
    assert by_line[4]["item"]["text"].startswith("x")
    assert "UTF-8" in by_line[8]["message"]
    assert "NUL" in by_line[9]["message"]
    json.dumps(partial.errors).encode()


def test_bad_lines_of_ndjson(conn: Connection, load: Callable[..., Any]) -> None:
    make_table(conn, "a int, b jsonb")
    content = (
        b'{"a": 1}\n{"a": \n[1]\n{"a": 2, "z": 1}\n{"a": "x"}\n{"a": NaN}\n{"a": 3, "b": "\\ud800"}\n'
        b'\xff\n{"a": 4, "b": "\\u0000"}\n{"a": 5, "b": {"k": "\\u0000"}}\n' + b"[" * 100_000 + b"\n" + b'{"a": 6}\n'
    )
    partial = load(content, "f.jsonl", columns=["a", "b"])
    assert [row[0] for row in rows(conn)] == [1, 2, 6]
    assert sorted(lines_of(partial)) == [2, 3, 5, 6, 7, 8, 9, 10, 11]
    partial = load(content, "f.jsonl")
    assert 4 in lines_of(partial)  # a key that the first object does not have


def test_violated_constraints_of_every_kind_reject_only_their_rows(conn: Connection, load: Callable[..., Any]) -> None:
    conn.execute("create table parent (id int primary key)")
    conn.execute("insert into parent values (1), (2)")
    conn.execute(
        "create table t (a int primary key check (a <> 7), b text not null,"
        " p int references parent, q int references parent deferrable initially deferred)"
    )
    conn.execute(
        "create function refuse() returns trigger language plpgsql as"
        " $$ begin if new.b = 'refused' then raise 'no %', new.b; end if; return new; end $$"
    )
    conn.execute("create trigger refuse before insert on t for each row execute function refuse()")
    good = "".join(f"{i},x,1,2\n" for i in range(100, 3000))
    bad = "1,x,1,1\n7,x,1,1\n1,again,1,1\n8,,1,1\n9,x,3,1\n10,x,1,3\n11,refused,1,1\n12,x,2,2\n"
    partial = load("a,b,p,q\n" + good + bad)
    assert conn.execute("select count(*), min(a) from t").fetchone() == (2902, 1)
    assert sorted(lines_of(partial)) == [2903, 2904, 2905, 2906, 2907, 2908]
    messages = " ".join(error["message"] for error in partial.errors)
    for word in ("check constraint", "unique constraint", "not-null", "foreign key", "no refused"):
        assert word in messages


def test_row_that_others_before_the_job_hold_is_rejected_not_the_batch(
    conn: Connection, load: Callable[..., Any]
) -> None:
    make_table(conn, "a int primary key, b text")
    conn.execute("insert into t values (1500, 'before')")
    partial = load("a,b\n" + "".join(f"{i},x\n" for i in range(1, 3001)))
    assert lines_of(partial) == [1501]
    assert conn.execute("select count(*) from t").fetchone() == (3000,)


def test_many_bad_rows_cost_a_bounded_number_of_rows_sent(
    conn: Connection, load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    copy = import_table.Loader._copy

    def counting(self: Any, part: list[Any]) -> Any:
        sent.append(len(part))
        return copy(self, part)

    monkeypatch.setattr(import_table.Loader, "_copy", counting)
    make_table(conn)
    count = 20_000
    content = "a,b\n" + "".join(f"{'x' if i % 10 == 3 else ''}{i},y\n" for i in range(count))
    partial = load(content, batch_rows=5000, max_errors=7)
    assert partial.result["rejected"] == count / 10
    assert len(partial.errors) == 7
    assert conn.execute("select count(*) from t").fetchone() == (count * 9 / 10,)
    assert sum(sent) < 5 * count


def test_bad_rows_are_found_where_the_server_names_no_line(
    conn: Connection, load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with messages in another language."""
    original = import_table.Loader.__init__

    def deaf(self: Any, *args: Any) -> None:
        original(self, *args)
        self._line_named = re.compile(r"(?!)")

    monkeypatch.setattr(import_table.Loader, "__init__", deaf)
    make_table(conn)
    partial = load("a,b\n" + "".join(f"{'x' if i % 97 == 0 else ''}{i},y\n" for i in range(1000)))
    assert lines_of(partial) == [i + 2 for i in range(0, 1000, 97)]


def test_file_without_one_good_row_fails_and_says_why(conn: Connection, load: Callable[..., Any]) -> None:
    make_table(conn)
    with pytest.raises(Fail, match="none of 2 rows could be loaded; line 2: invalid input syntax"):
        load("a,b\nx,1\ny,2\n", max_errors=0)


def test_empty_file_with_a_header_is_no_failure(conn: Connection, load: Callable[..., Any]) -> None:
    make_table(conn)
    assert load("a,b\n")["rows"] == 0


def test_quote_never_closed_costs_one_line_not_the_rest(conn: Connection, load: Callable[..., Any]) -> None:
    make_table(conn)
    partial = load('a,b\n1,x\n2,"open\n' + "".join(f"{i},y\n" for i in range(3, 2000)))
    assert lines_of(partial) == [3]
    assert conn.execute("select count(*) from t").fetchone() == (1998,)


def test_line_of_300_megabytes_is_rejected_in_little_memory(conn: Connection, root: Path, dsn: str) -> None:
    make_table(conn)
    with gzip.open(root / "f.csv.gz", "wb", compresslevel=1) as file:
        file.write(b"a,b\n1,x\n2,")
        for _ in range(300):
            file.write(b"y" * (1 << 20))
        file.write(b"\n3,z\n")
    job = import_runner.add_job(conn, {"path": "f.csv.gz", "table": "t"})
    code = (
        "import re, sys; from pathlib import Path; from tests.db.import_runner import *;"
        "r = run(DirectRuntime(sys.argv[1]), int(sys.argv[2]));"
        # Not ru_maxrss: that of a process counts what it was forked from.
        "peak = re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1];"
        "print(r.errors[0]['item']['line'], peak)"
    )
    answer = subprocess.run([sys.executable, "-c", code, dsn, str(job)], capture_output=True, text=True, check=True)
    line, peak_kib = map(int, answer.stdout.split())
    assert line == 3
    assert peak_kib < 150_000
    assert [row[0] for row in rows(conn)] == [1, 3]


# Crashes, cancels and lost attempts


def start_runner(dsn: str, job: int, place: str, visit: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.db.import_runner", dsn, str(job), place, str(visit)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def next_attempt(conn: Connection, job: int) -> None:
    conn.execute("update dispatcher.job set attempt = attempt + 1 where id = %s", [job])


@pytest.mark.parametrize("name", ["f.csv", "f.csv.gz", "f.ndjson"])
@pytest.mark.parametrize("place", ["batch", "checkpoint"])
def test_each_row_is_loaded_once_however_often_the_process_is_killed(
    conn: Connection, dsn: str, root: Path, runtime: DirectRuntime, name: str, place: str
) -> None:
    """Killed after a batch's commit, and between its checkpoint and its commit."""
    make_table(conn)  # without a key: a row loaded twice would stay
    count = 3000
    header, line = ("a,b\n", '{},"x\ny"\n') if "csv" in name else ("", '{{"a": {}, "b": "x"}}\n')
    bad = [100, 1600]
    content = header + "".join(line.format('"x"' if i in bad else i) for i in range(count))
    (root / name).write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    job = import_runner.add_job(conn, {"path": name, "table": "t", "batch_rows": 300})
    for visit in (1, 2, 1, 3):
        runner = start_runner(dsn, job, place, visit)
        assert runner.stdout
        assert runner.stdout.readline() == "here\n"
        kill(runner)
        next_attempt(conn, job)
    partial = import_runner.run(runtime, job)
    assert [row[0] for row in rows(conn)] == [i for i in range(count) if i not in bad]
    assert partial.result["rows"] == count - 2
    per_row = 2 if "csv" in name else 1
    first = 2 if "csv" in name else 1
    assert lines_of(partial) == [first + per_row * i for i in bad]
    assert min(runtime.progress) > 0


def test_kill_in_the_middle_of_a_copy_leaves_nothing_of_its_batch(
    conn: Connection, dsn: str, root: Path, runtime: DirectRuntime
) -> None:
    make_table(conn)
    # A row that waits inside the COPY until the test lets it.
    conn.execute(
        "create function wait() returns trigger language plpgsql as"
        " $$ begin if new.a = 250 then perform pg_advisory_xact_lock(1); end if; return new; end $$"
    )
    conn.execute("create trigger wait before insert on t for each row execute function wait()")
    (root / "f.csv").write_text("a,b\n" + "".join(f"{i},x\n" for i in range(500)))
    job = import_runner.add_job(conn, {"path": "f.csv", "table": "t", "batch_rows": 100})
    conn.execute("select pg_advisory_lock(1)")
    runner = start_runner(dsn, job, "nowhere", 0)
    wait_for_lock(conn)
    kill(runner)
    assert conn.execute("select count(*) from t").fetchone() == (200,)
    next_attempt(conn, job)
    conn.execute("select pg_advisory_unlock(1)")
    assert import_runner.run(runtime, job)["rows"] == 500
    assert [row[0] for row in rows(conn)] == list(range(500))


def wait_for_lock(conn: Connection) -> None:
    """Until some session of this database waits for a lock; there is no event for that."""
    deadline = time.monotonic() + 20
    while (
        conn.execute(
            "select 1 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        ).fetchone()
        is None
    ):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_lost_attempt_loads_nothing_more(conn: Connection, root: Path, runtime: DirectRuntime) -> None:
    make_table(conn)
    (root / "f.csv").write_text("a,b\n" + "".join(f"{i},x\n" for i in range(100)))
    job = import_runner.add_job(conn, {"path": "f.csv", "table": "t", "batch_rows": 10})
    runtime.after_progress = lambda: next_attempt(conn, job)
    with pytest.raises(AttemptLost):
        import_runner.run(runtime, job)
    assert conn.execute("select count(*) from t").fetchone() == (10,)
    runtime.after_progress = lambda: None
    assert import_runner.run(runtime, job)["rows"] == 100
    assert conn.execute("select count(*) from t").fetchone() == (100,)


def test_run_again_after_the_end_loads_nothing_twice(conn: Connection, root: Path, runtime: DirectRuntime) -> None:
    """The outcome may be lost although the last batch was committed."""
    make_table(conn)
    (root / "f.csv").write_text("a,b\n1,x\n")
    job = import_runner.add_job(conn, {"path": "f.csv", "table": "t"})
    for _ in range(2):
        assert import_runner.run(runtime, job)["rows"] == 1
    assert rows(conn) == [(1, "x")]


def test_cancel_takes_effect_between_batches(conn: Connection, root: Path, runtime: DirectRuntime) -> None:
    make_table(conn)
    (root / "f.csv").write_text("a,b\n" + "".join(f"{i},x\n" for i in range(100)))
    job = import_runner.add_job(conn, {"path": "f.csv", "table": "t", "batch_rows": 10})
    ctx = import_runner.context(runtime, job)
    runtime.after_progress = lambda: ctx.cancel(CancelReason.SHUTDOWN)
    with pytest.raises(Interrupted):
        import_runner.run(runtime, job, ctx)
    assert conn.execute("select count(*) from t").fetchone() == (10,)


def test_cancel_ends_the_wait_for_a_locked_table(
    conn: Connection, root: Path, runtime: DirectRuntime, dsn: str
) -> None:
    make_table(conn)
    (root / "f.csv").write_text("a,b\n1,x\n")
    job = import_runner.add_job(conn, {"path": "f.csv", "table": "t"})
    ctx = import_runner.context(runtime, job)
    with psycopg.connect(dsn) as locker:
        locker.execute("lock table t")

        def cancel() -> None:
            with psycopg.connect(dsn, autocommit=True) as other:
                wait_for_lock(other)
            ctx.cancel(CancelReason.TIMEOUT)

        thread = threading.Thread(target=cancel)
        thread.start()
        with pytest.raises(Interrupted):
            import_runner.run(runtime, job, ctx)
        thread.join()


@pytest.mark.timeout(20)
def test_cancel_just_before_a_wait_for_a_locked_table_is_not_lost(
    conn: Connection, root: Path, runtime: DirectRuntime, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two statements PostgreSQL forgets that it was asked to cancel."""
    make_table(conn)
    (root / "f.csv").write_text("a,b\n1,x\n")
    job = import_runner.add_job(conn, {"path": "f.csv", "table": "t"})
    ctx = import_runner.context(runtime, job)
    asked, take = threading.Event(), Source.take

    class Told(psycopg.Connection[Any]):
        def cancel_safe(self, *, timeout: float = 30.0) -> None:
            super().cancel_safe(timeout=timeout)
            asked.set()

    def canceled_meanwhile(self: Source, count: int) -> Any:
        if count > 1:  # not the header
            ctx.cancel(CancelReason.REQUESTED)
            assert asked.wait(10)
        return take(self, count)

    monkeypatch.setattr(runtime, "connect", lambda: Told.connect(dsn))
    monkeypatch.setattr(Source, "take", canceled_meanwhile)
    with psycopg.connect(dsn) as locker:
        locker.execute("lock table t")
        with pytest.raises(Interrupted):
            import_runner.run(runtime, job, ctx)


def test_file_that_changed_between_two_tries_is_not_gone_on_with(
    conn: Connection, root: Path, runtime: DirectRuntime
) -> None:
    make_table(conn)
    (root / "f.csv").write_text("a,b\n1,x\n2,x\n")
    job = import_runner.add_job(conn, {"path": "f.csv", "table": "t", "batch_rows": 1})
    ctx = import_runner.context(runtime, job)
    runtime.after_progress = lambda: ctx.cancel(CancelReason.SHUTDOWN)
    with pytest.raises(Interrupted):
        import_runner.run(runtime, job, ctx)
    times = (root / "f.csv").stat()
    (root / "f.csv").write_text("a,b\n1,x\n3,x\n")
    os.utime(root / "f.csv", ns=(times.st_atime_ns, times.st_mtime_ns))  # same size, same time
    with pytest.raises(Fail, match="has changed since its first 2 lines"):
        import_runner.run(runtime, job)
    assert rows(conn) == [(1, "x")]


def test_file_that_changes_while_it_is_read_fails(conn: Connection, root: Path, runtime: DirectRuntime) -> None:
    make_table(conn)
    (root / "f.csv").write_text("a,b\n1,x\n2,x\n")
    job = import_runner.add_job(conn, {"path": "f.csv", "table": "t", "batch_rows": 1})

    def append() -> None:
        with (root / "f.csv").open("a") as file:
            file.write("3,x\n")

    runtime.after_progress = append
    with pytest.raises(Fail, match="was changed while it was read"):
        import_runner.run(runtime, job)
    assert rows(conn) == [(1, "x")]


def test_damaged_gzip_fails_after_what_was_good(conn: Connection, root: Path, runtime: DirectRuntime) -> None:
    make_table(conn)
    data = gzip.compress(b"a,b\n" + b"".join(b"%d,%s\n" % (i, os.urandom(20).hex().encode()) for i in range(50_000)))
    (root / "f.csv.gz").write_bytes(data[: len(data) // 2])
    job = import_runner.add_job(conn, {"path": "f.csv.gz", "table": "t", "batch_rows": 1000})
    with pytest.raises(Fail, match="damaged or cut off"):
        import_runner.run(runtime, job)
    count = conn.execute("select count(*) from t").fetchone()
    assert count
    assert 0 < count[0] < 50_000


# What may be read and written


@pytest.mark.parametrize(
    "path",
    [
        "../secret.csv",
        "/etc/passwd",
        "link.csv",
        "folder/../../secret.csv",
        "linked/secret.csv",
        "",
        ".",
        "..",
    ],
)
def test_path_out_of_the_folder_is_refused(conn: Connection, root: Path, runtime: DirectRuntime, path: str) -> None:
    make_table(conn)
    (root.parent / "secret.csv").write_text("a,b\n1,x\n")
    (root / "folder").mkdir()
    (root / "link.csv").symlink_to(root.parent / "secret.csv")
    (root / "linked").symlink_to(root.parent)
    job = import_runner.add_job(conn, {"path": path, "table": "t", "format": "csv"})
    with pytest.raises(Fail, match="not inside the import folder"):
        import_runner.run(runtime, job)
    assert rows(conn) == []


def test_folder_swapped_for_a_link_after_the_check_is_not_followed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root.parent / "f.csv").write_text("secret")
    (root / "sub").mkdir()
    (root / "sub" / "f.csv").write_text("public")
    realpath = os.path.realpath

    def resolve_then_swap(path: str) -> str:
        resolved = realpath(path)
        if str(path).endswith("f.csv"):
            (root / "sub").rename(root / "old")
            (root / "sub").symlink_to(root.parent)
        return resolved

    monkeypatch.setattr(import_file.os.path, "realpath", resolve_then_swap)
    with pytest.raises(import_file.FileProblem, match="cannot open"):
        import_file.open_inside(str(root), "sub/f.csv")


def test_link_inside_the_folder_is_followed(
    conn: Connection, root: Path, load: Callable[..., Any], runtime: DirectRuntime
) -> None:
    make_table(conn)
    (root / "day").mkdir()
    (root / "day" / "f.csv").write_text("a,b\n1,x\n")
    (root / "latest.csv").symlink_to("day/f.csv")
    job = import_runner.add_job(conn, {"path": "latest.csv", "table": "t"})
    assert import_runner.run(runtime, job)["rows"] == 1


def test_what_is_no_regular_file_is_refused_without_waiting(
    conn: Connection, root: Path, runtime: DirectRuntime
) -> None:
    make_table(conn)
    os.mkfifo(root / "fifo.csv")
    (root / "folder.csv").mkdir()
    for name in ("fifo.csv", "folder.csv"):
        job = import_runner.add_job(conn, {"path": name, "table": "t"})
        with pytest.raises(Fail, match="no regular file"):
            import_runner.run(runtime, job)


def test_imports_are_off_until_a_folder_is_set(
    conn: Connection, runtime: DirectRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISPATCHER_IMPORT_ROOT", raising=False)
    job = import_runner.add_job(conn, {"path": "f.csv", "table": "t"})
    with pytest.raises(Fail, match="set DISPATCHER_IMPORT_ROOT"):
        import_runner.run(runtime, job)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("dispatcher.job", "not for imports"),
        ("pg_catalog.pg_class", "not for imports"),
        ("pg_class", "not for imports"),
        ("information_schema.sql_features", "not for imports"),
        ("v", "is no table"),
        ("missing", "there is no table"),
        ("public.t; drop table t", "there is no table"),
        ("t\" (a) from program 'id' --", "there is no table"),
        ("T", "there is no table"),
        ("", "there is no table"),
        (".t", "there is no table"),
        ("public.", "there is no table"),
    ],
)
def test_table_that_is_none_of_the_users_is_refused(
    conn: Connection, load: Callable[..., Any], table: str, reason: str
) -> None:
    make_table(conn)
    conn.execute("create view v as select * from t")
    with pytest.raises(Fail, match=reason):
        load("a,b\n1,x\n", table=table)


def test_odd_names_and_partitioned_tables_are_loaded(conn: Connection, load: Callable[..., Any]) -> None:
    conn.execute('create schema "My Schema"')
    conn.execute('create table "My Schema"."T, line 1" (a int, b text) partition by range (a)')
    conn.execute('create table p partition of "My Schema"."T, line 1" for values from (0) to (10)')
    partial = load("a,b\n1,x\n2,x\n50,x\n3,x\n", table="My Schema.T, line 1")
    assert lines_of(partial) == [4]
    assert partial.result["rows"] == 3


def test_column_or_privilege_that_is_missing_fails_in_one_line(
    conn: Connection, load: Callable[..., Any], superuser_dsn: str
) -> None:
    make_table(conn)
    with pytest.raises(Fail, match="has no column 'c'"):
        load("a,c\n1,x\n")
    with pytest.raises(Fail, match="the file has no column 'z'; it has a, b"):
        load("a,b\n1,x\n", columns=["z"])
    with psycopg.connect(superuser_dsn, autocommit=True) as superuser:
        superuser.execute("create table foreign_table (a int, b text)")
    with pytest.raises(Fail, match="permission denied for table foreign_table"):
        load("a,b\n1,x\n", table="foreign_table")


@pytest.mark.parametrize(
    "wrong",
    [
        {"delimiter": "ab"},
        {"delimiter": '"'},
        {"null": "a,b"},
        {"columns": []},
        {"batch_rows": 0},
        {"unknown": 1},
    ],
)
def test_payload_that_makes_no_sense_is_refused_before_it_runs(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BulkImportPayload.model_validate({"path": "f.csv", "table": "t", **wrong})
