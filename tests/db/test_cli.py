"""The command: what it prints where, its exit status, and one line for whatever goes wrong."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result
from dispatcher.sql import migrations

from dispatcher.cli import COMMANDS, enqueue, main
from dispatcher.http import Client as HttpClient
from tests.db.front_door import MAX_BYTES, count, end, publish

DISPATCHER = [sys.executable, "-m", "dispatcher"]
Run = Callable[..., Result]


@pytest.fixture
def bare() -> Run:
    """The command, without a database."""

    def run(*args: str, dsn: str | None = None, **kwargs: Any) -> Result:
        env = {"DISPATCHER_DSN": dsn, "DATABASE_URL": None, "DISPATCHER_CONFIG": None}
        return CliRunner(env=env).invoke(main, args, prog_name="dispatcher", **kwargs)

    return run


@pytest.fixture
def run(bare: Run, dsn: str, conn: psycopg.Connection[Any]) -> Run:
    """The command on a database that knows two types."""
    publish(conn)
    return lambda *args, **kwargs: bare(*args, dsn=dsn, **kwargs)


def refused(result: Result, told: str, status: int = 1) -> None:
    """One line on standard error, nothing on standard output."""
    assert told in result.stderr
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert result.exit_code == status


def data(result: Result) -> Any:
    """The JSON that a command printed."""
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


# Bad input.


def test_no_database_is_named_and_none_is_found(bare: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("PGHOST", "PGHOSTADDR", "PGSERVICE", "PGSERVICEFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PGPORT", "1")  # where nothing listens, whatever libpq takes for the default
    refused(bare("job", "list"), "set DISPATCHER_DSN")
    assert "DISPATCHER_DSN" not in bare("job", "list", dsn=f"host={tmp_path}").stderr
    monkeypatch.setenv("PGHOST", str(tmp_path))
    assert "DISPATCHER_DSN" not in bare("job", "list").stderr


@pytest.mark.parametrize(
    ("args", "told", "status"),
    [
        (["nope"], "unknown job type 'nope'; known types: any, import", 1),
        (["any", "{"], "the payload is not JSON: Expecting property name", 1),
        (["any", ""], "the payload is not JSON", 1),
        (["any", "[1]"], "the payload must be a JSON object, not an array", 1),
        (["any", "null"], "the payload must be a JSON object, not null", 1),
        (["any", '{"a": "\\u0000"}'], "a: it has a NUL character", 1),
        (["any", '{"a": ["\\ud800"]}'], "a.0: it has half of a surrogate pair", 1),
        (["any", '{"a": NaN}'], "a: Out of range float values are not JSON compliant", 1),
        (["any", '{"a": 1e999}'], "a: Out of range float values are not JSON compliant", 1),
        (["any", '{"a": %s}' % ("1" * 5000)], "the payload is not JSON: Exceeds the limit", 1),
        (["any", "[" * 100_000], "the payload is nested too deeply", 1),
        (["import", '{"rows": [{"name": 5}]}'], "rows.0.name: must be a string, not a number", 1),
        (["any", "--priority", "40000"], "--priority': 40000 is not in the range -32768<=x<=32767", 2),
        (["any", "--priority", "high"], "--priority': 'high' is not a valid integer", 2),
        (["any", "--in=-5s"], "--in': '-5s' is no duration: it must not be negative", 2),
        (["any", "--in", "soon"], "--in': 'soon' is no duration: write 5s", 2),
        (["any", "--timeout", "0"], "timeout must be more than zero", 1),
        (["any", "--timeout=-1"], "--timeout': '-1' is no duration", 2),
        (
            ["any", "--at", "2030-01-31T12:00"],
            "has no time zone and none is assumed: write 2030-01-31T12:00:00+01:00",
            2,
        ),
        (["any", "--at", "tomorrow"], "'tomorrow' is no time: write 2030-01-31T12:00:00+01:00", 2),
        (["any", "--at", "2030-01-31T12:00Z", "--in", "5s"], "--in and --at exclude each other", 2),
        (["any", "{}", "--file", "x"], "PAYLOAD and --file exclude each other", 2),
        (["any", "--file", "x", "--unique-key", "k"], "--unique-key names one job", 2),
        (["any", "--file", "/no/such/file"], "cannot read /no/such/file: No such file or directory", 1),
        (["any", "--file", "/"], "cannot read /: Is a directory", 1),
        (["any", "--tenant", ""], "tenant must be a text of 1 to 200 characters", 1),
        (["any", "--max-attempts", "0"], "--max-attempts': 0 is not in the range", 2),
        (["any", "{}", "{}"], "Got unexpected extra argument", 2),
        ([], "Missing argument 'TYPE'", 2),
        (["any", "--urgent"], "No such option", 2),
    ],
)
def test_bad_enqueue_is_one_line_and_writes_nothing(
    run: Run, conn: psycopg.Connection[Any], args: list[str], told: str, status: int
) -> None:
    refused(run("enqueue", *args), told, status)
    assert count(conn) == 0


def test_payload_over_the_limit_says_both_sizes(run: Run) -> None:
    payload = json.dumps({"x": os.urandom(MAX_BYTES).hex()})
    refused(run("enqueue", "any", payload), f"the payload has {len(payload)} bytes; the limit is {MAX_BYTES}")


def test_standard_input_that_is_not_utf8_is_refused(run: Run) -> None:
    refused(
        run("enqueue", "any", "-", input=b'{"a": "\xff"}'), "the payload is not UTF-8: invalid start byte at byte 8"
    )


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["show", "99"], "there is no job 99"),
        (["result", "99"], "there is no job 99"),
        (["wait", "99"], "there is no job 99"),
        (["cancel", "99"], "there is no job 99"),
        (["retry", "99"], "there is no job 99"),
        (["show", "99999999999999999999"], "there is no job 99999999999999999999"),
        (["result", "1"], "job 1 is pending: it has no result yet"),
        (["retry", "1"], "job 1 is pending; only failed, partial, canceled and scheduled jobs can be retried"),
        (["cancel", "2"], "job 2 has already ended, it is succeeded: it cannot be canceled"),
        (["wait", "1", "--timeout", "10ms"], "job 1 has not ended in time"),
        (["wait", "1", "--timeout", "-1s"], "is no duration"),
        (["result", "3"], "job 3 (any) failed after 1 attempt: no \\x1b[31m luck \\n at all"),
    ],
)
def test_missing_job_or_wrong_state_is_one_line(
    run: Run, conn: psycopg.Connection[Any], args: list[str], told: str
) -> None:
    for _ in range(3):
        run("enqueue", "any")
    end(conn, 2, "succeeded")
    end(conn, 3, "failed", error="no \x1b[31m luck \\n at all")
    refused(run("job", *args), told)


@pytest.mark.parametrize("command", ["run", "config", "dev"])
@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--lease-duration", "2s"], "lease_duration must exceed twice heartbeat_interval"),
        (["--threads", "0"], "threads: Input should be greater than or equal to 1"),
        (["--poll-interval", "soon"], "poll_interval: 'soon' is no duration"),
        (["--config", "/no/such/file"], "cannot read the settings file /no/such/file"),
    ],
)
def test_contradicting_settings_stop_every_command_that_reads_them(
    bare: Run, command: str, flags: list[str], told: str
) -> None:
    refused(bare(command, *flags), told)


@pytest.mark.parametrize(
    "args",
    [
        ["migrate"],
        ["migrate", "--check"],
        ["run"],
        ["enqueue", "x"],
        ["job", "list"],
        ["leader", "show"],
        ["type", "list"],
    ],
)
@pytest.mark.parametrize(
    ("dsn", "told"),
    [
        ("postgresql://u:s3cret@127.0.0.1:1/db", "Connection refused"),
        ("host=/no/such/folder password=s3cret", "No such file or directory"),
        ("postgresql://u:s3c/ret@h/db", "the DSN is malformed (not shown"),
        ("postgresql://u:x@s3cret@h/db", "the DSN is malformed (not shown"),
        ("postgresql://u:1/s3cret@h/db", "the DSN is malformed (not shown"),
        ("postgresql://u:x@y/s3cret@h/db", "the DSN is malformed (not shown"),
        ("password=s3cret and more", "the DSN is malformed (not shown"),
        ("s3cret", "the DSN is malformed (not shown"),
    ],
)
def test_unreachable_or_malformed_dsn_is_one_line_without_the_password(
    bare: Run, args: list[str], dsn: str, told: str
) -> None:
    result = bare(*args, dsn=dsn)
    refused(result, told)
    assert "s3c" not in result.output


def test_database_without_the_schema_says_what_to_do(bare: Run, empty_dsn: str) -> None:
    for args in (["enqueue", "any"], ["job", "list"], ["replica", "list"], ["run", "--metrics-port", "0"]):
        refused(bare(*args, dsn=empty_dsn), "dispatcher migrate` first")


# NDJSON.


def lines(number: int, bad: dict[int, bytes]) -> bytes:
    return b"\n".join(bad.get(at, b'{"into": "line %d"}' % at) for at in range(1, number + 1)) + b"\n"


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (b'{"into": }', "line 17: the payload is not JSON: Expecting value"),
        (b'{"into": "x"', "line 17: the payload is not JSON"),
        (b"[1]", "line 17: the payload must be a JSON object, not an array"),
        (b'{"into": 5}', "line 17: the payload does not fit 'import': into: must be a string, not a number"),
        (b'{"into": "\\u0000"}', "line 17: the payload cannot be stored: into: it has a NUL"),
        (b'{"into": "\\uD83D"}', "line 17: the payload cannot be stored: into: it has half of a surrogate"),
        (b'{"into": "\xff"}', "line 17: it is not UTF-8: invalid start byte at byte 11"),
        (b'{"into": "x", "y": NaN}', "line 17: the payload is not JSON: NaN is no JSON value"),
        (
            b'{"into": "%s"}' % (b"x" * 9 * MAX_BYTES),
            f"line 17: the payload has {9 * MAX_BYTES + 12} bytes; the limit is",
        ),
    ],
)
@pytest.mark.parametrize("number", [30, 20_000])
def test_bad_line_is_named_and_nothing_is_enqueued(
    run: Run, conn: psycopg.Connection[Any], tmp_path: Path, bad: bytes, told: str, number: int
) -> None:
    path = tmp_path / "jobs.ndjson"
    path.write_bytes(lines(number, {17: bad}))
    refused(run("enqueue", "import", "--file", str(path)), told)
    assert count(conn) == 0


def test_first_of_several_bad_lines_is_the_one_named(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "jobs.ndjson"
    path.write_bytes(lines(40, {17: b"[]", 18: b"{", 40: b"\xff"}))
    refused(run("enqueue", "import", "--file", str(path)), "line 17: ")


def test_bad_line_in_the_last_of_many_chunks_takes_all_back(
    run: Run, conn: psycopg.Connection[Any], tmp_path: Path
) -> None:
    path = tmp_path / "jobs.ndjson"
    path.write_bytes(lines(100_000, {99_999: b"{"}))
    refused(run("enqueue", "import", "--file", str(path)), "line 99999: the payload is not JSON")
    assert count(conn) == 0


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("from_stdin", [False, True])
def test_every_line_is_enqueued_in_order(
    run: Run, conn: psycopg.Connection[Any], tmp_path: Path, packed: bool, from_stdin: bool
) -> None:
    text = (
        b'\xef\xbb\xbf{"into": "\xc3\xa4"}\r\n\n  {"into": "b"}  \n'
        + lines(100_000, {})
        + b'{"into": "\\ud83d\\ude80"}'
    )
    content = gzip.compress(text) if packed else text
    path = tmp_path / "jobs"
    path.write_bytes(content)
    answer = data(
        run("enqueue", "import", "--json", "--priority", "3", "--file", "-" if from_stdin else str(path), input=content)
    )
    assert answer["count"] == 100_003
    assert answer["ids"] == sorted(answer["ids"])
    stored = conn.execute("select payload->>'into' from dispatcher.job where priority = 3 order by id").fetchall()
    assert [into for (into,) in stored] == ["ä", "b", *(f"line {at}" for at in range(1, 100_001)), "🚀"]


def test_broken_gzip_enqueues_nothing(run: Run, conn: psycopg.Connection[Any], tmp_path: Path) -> None:
    path = tmp_path / "jobs.gz"
    path.write_bytes(gzip.compress(os.urandom(1000).hex().encode())[:500])
    refused(run("enqueue", "any", "--file", str(path)), "cannot read")
    assert count(conn) == 0


def test_empty_file_enqueues_nothing(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "empty"
    path.write_bytes(b"\n\n")
    assert data(run("enqueue", "any", "--json", "--file", str(path))) == {"count": 0, "created": 0, "ids": []}
    refused(run("enqueue", "nope", "--file", str(path)), "unknown job type 'nope'")


def test_no_progress_bar_and_no_escape_codes_off_a_terminal(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "jobs"
    path.write_bytes(lines(3, {}))
    result = run("enqueue", "import", "--file", str(path))
    assert (result.stdout, result.stderr) == ("3 jobs enqueued, 1 to 3\n", "")


# Good input.


def test_enqueue_prints_the_id_alone(run: Run) -> None:
    result = run("enqueue", "any", '{"a": "ä"}', "--in", "1h", "--tenant", "t", "--priority", "-3")
    assert (result.stdout, result.stderr, result.exit_code) == ("1\n", "", 0)
    job = data(run("job", "show", "1", "--json"))
    assert (job["payload"], job["state"], job["tenant"], job["priority"]) == ({"a": "ä"}, "scheduled", "t", -3)
    assert data(run("enqueue", "any", "-", "--unique-key", "k", "--json", input="{}")) == {"id": 2, "created": True}
    assert data(run("enqueue", "any", "--unique-key", "k", "--json")) == {"id": 2, "created": False}
    later = run("enqueue", "any", "--at", "2040-01-31T12:00:00+05:45").stdout.strip()
    assert data(run("job", "show", later, "--json"))["run_at"].startswith("2040-01-31T06:15:00")


def test_common_options_stand_before_or_after_the_command(bare: Run, dsn: str, tmp_path: Path) -> None:
    path = tmp_path / "d.toml"
    path.write_text(f"dsn = {json.dumps(dsn)}\n")
    for args in (
        ["--dsn", dsn, "--json", "job", "list"],
        ["job", "list", "--json", "--dsn", dsn],
        ["--config", str(path), "job", "list", "--json"],
    ):
        assert data(bare(*args)) == []


def test_flag_wins_over_the_environment(bare: Run, dsn: str) -> None:
    assert bare("job", "list", "--dsn", dsn, dsn="host=/no/such/folder").exit_code == 0


def test_job_commands_for_people_and_programs(run: Run, conn: psycopg.Connection[Any]) -> None:
    for _ in range(4):
        run("enqueue", "any", '{"name": "a\\u001b[31mb"}')
    end(conn, 1, "succeeded", result={"rows": 3})
    end(conn, 2, "failed", error="bad\x1b[31m luck")
    shown = run("job", "show", "2")
    assert "state     failed" in shown.stdout
    assert "exception: bad\\x1b[31m luck" in shown.stdout
    table = run("job", "list").stdout.splitlines()
    assert table[0].split() == ["ID", "TYPE", "STATE", "CREATED", "ATTEMPT", "PROGRESS", "TENANT", "LAST", "ERROR"]
    assert len(table) == 5
    assert "\x1b" not in shown.stdout + "".join(table)
    assert [job["id"] for job in data(run("job", "list", "--json", "--state", "failed"))] == [2]
    assert data(run("job", "result", "1", "--json")) == {"rows": 3}
    assert json.loads(run("job", "result", "1").stdout) == {"rows": 3}
    assert run("job", "cancel", "3").stdout == "canceled\n"
    assert data(run("job", "retry", "3", "--json")) == {"id": 3, "state": "pending"}
    assert "there may be more: --before 3" in run("job", "list", "--limit", "2").stderr


def test_several_jobs_at_once_do_what_can_be_done(run: Run, conn: psycopg.Connection[Any]) -> None:
    for _ in range(3):
        run("enqueue", "any")
    end(conn, 2, "succeeded")
    result = run("job", "cancel", "1", "2", "3")
    assert result.stdout == "1 canceled\n3 canceled\n"
    assert result.stderr == "Error: job 2 has already ended, it is succeeded: it cannot be canceled\n"
    assert result.exit_code == 1
    waited = run("job", "wait", "1", "2")
    assert waited.stdout == "1 canceled\n2 succeeded\n"
    assert waited.exit_code == 1
    assert run("job", "wait", "2").exit_code == 0


def test_migrate_check_names_what_is_missing(bare: Run, empty_dsn: str) -> None:
    names = [f"{version:04d}_{name}" for version, name, _ in migrations()]
    refused(bare("migrate", "--check", dsn=empty_dsn), f"the database lacks {', '.join(names)}")
    assert data(bare("migrate", "--json", dsn=empty_dsn)) == {"applied": names}
    assert data(bare("migrate", "--json", dsn=empty_dsn)) == {"applied": []}
    assert bare("migrate", "--check", dsn=empty_dsn).exit_code == 0


def test_printed_sql_does_what_migrate_does(bare: Run, empty_dsn: str) -> None:
    script = bare("migrate", "--sql").stdout
    with psycopg.connect(empty_dsn, autocommit=True) as conn:
        conn.execute(script.encode())
    assert bare("migrate", "--check", dsn=empty_dsn).exit_code == 0


def test_config_shows_origins_and_masks_the_password(bare: Run, tmp_path: Path) -> None:
    path = tmp_path / "d.toml"
    path.write_text('poll_interval = "3s"\n')
    args = ["config", "--config", str(path), "--threads", "4", "--limits", "a=1", "--limits", "b=2"]
    shown = data(bare(*args, "--json", dsn="postgresql://u:s3cret@h/db"))
    assert shown["threads"] == {"value": 4, "origin": "flag"}
    assert shown["poll_interval"] == {"value": "3s", "origin": f"file {path}"}
    assert shown["limits"]["value"] == {"a": 1, "b": 2}
    assert shown["log_level"] == {"value": "info", "origin": "default"}
    assert shown["dsn"]["origin"] == "environment DISPATCHER_DSN"
    text = bare(*args, dsn="postgresql://u:s3cret@h/db").stdout
    assert "password=***" in text
    assert "s3cret" not in text + json.dumps(shown)


def test_nobody_leads_an_idle_database(run: Run) -> None:
    refused(run("leader", "show"), "nobody leads: the lease 'default' is free")
    refused(run("leader", "resign"), "nobody leads: the lease 'default' is free")
    assert data(run("replica", "list", "--json")) == []
    assert [one["name"] for one in data(run("type", "list", "--json"))] == ["any", "import"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(bare: Run, name: str) -> None:
    result = bare(name, "--help")
    assert result.exit_code == 0
    assert "Usage: dispatcher " in result.stdout


def test_unexpected_error_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise LookupError("a bug")

    monkeypatch.setattr("dispatcher.client.Client.get", broken)
    refused(run("job", "show", "1"), "unexpected LookupError: a bug")


# Real processes.


@pytest.fixture
def replica(dsn: str) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts replicas, each ready when this returns, and ends them."""
    started: list[subprocess.Popen[str]] = []

    def start(*flags: str) -> subprocess.Popen[str]:
        command = [
            *DISPATCHER,
            "run",
            "--dsn",
            dsn,
            "--metrics-port",
            "0",
            "--executors",
            "dispatcher.cli.hello",
            *flags,
        ]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
        started.append(process)
        wait_for(process, "dispatcher.daemon: started")
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    """Reads standard error until a line has `text`."""
    assert process.stderr is not None
    seen = ""
    while text not in (line := process.stderr.readline()):
        seen += line
        assert line, f"it ended: {seen}"


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DISPATCHER_", "PG", "COV"))}
    return {**kept, **more}


def call(*args: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DISPATCHER, *args], capture_output=True, text=True, check=False, timeout=30, env=environment(), **kwargs
    )


def test_who_waits_for_a_job_that_nobody_runs_learns_why(
    run: Run, conn: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def note(text: str) -> None:
        told.append(text)
        conn.execute("select dispatcher.cancel(1)")

    monkeypatch.setattr(enqueue, "WHY_AFTER_S", 0.0)
    monkeypatch.setattr(enqueue, "note", note)
    assert run("enqueue", "any", "--wait").exit_code == 1
    [why] = told
    assert why.startswith("still waiting: job 1 (any) is pending: ")


def test_wait_prints_the_result_and_fails_with_the_job(dsn: str, replica: Callable[..., subprocess.Popen[str]]) -> None:
    process = replica()
    done = call("enqueue", "hello", '{"name": "ä"}', "--wait", "--dsn", dsn)
    assert done.stdout.splitlines()[:2] == ["1", "succeeded"]
    assert json.loads("".join(done.stdout.splitlines()[2:])) == {"greeting": "Hello, ä!"}
    assert done.returncode == 0
    bad = call(
        "enqueue", "command", '{"command": "no-such-command"}', "--max-attempts", "1", "--wait", "--json", "--dsn", dsn
    )
    assert bad.returncode == 1
    assert "Traceback" not in bad.stderr
    shown = json.loads(call("replica", "list", "--json", "--dsn", dsn).stdout)
    assert [(one["pid"], one["leads"], one["alive"]) for one in shown] == [(process.pid, True, True)]
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def test_resign_hands_the_lease_to_the_standby(dsn: str, replica: Callable[..., subprocess.Popen[str]]) -> None:
    replica()
    replica()
    before = json.loads(call("leader", "show", "--json", "--dsn", dsn).stdout)
    resigned = call("leader", "resign", "--json", "--dsn", dsn)
    assert resigned.returncode == 0, resigned.stderr
    with psycopg.connect(dsn, autocommit=True) as conn:
        row = conn.execute("select term > %s from dispatcher.lease", (before["term"],)).fetchone()
    after = json.loads(resigned.stdout)
    assert after["before"] == before
    assert row == (True,) or after["after"] is None


def test_ctrl_c_ends_a_wait_quietly(dsn: str, conn: psycopg.Connection[Any]) -> None:
    publish(conn)
    waiting = subprocess.Popen(
        [*DISPATCHER, "enqueue", "any", "--wait", "--dsn", dsn],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == "1\n"
    waiting.send_signal(signal.SIGINT)
    assert waiting.communicate(timeout=20) == ("", "")
    assert waiting.returncode == 130


def test_closed_pipe_ends_quietly(dsn: str, conn: psycopg.Connection[Any]) -> None:
    publish(conn)
    conn.execute("select * from dispatcher.enqueue_many('any', array_fill('{}'::jsonb, array[5000]))")
    with subprocess.Popen(
        [*DISPATCHER, "job", "list", "--limit", "5000", "--dsn", dsn],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as listing:
        assert listing.stdout is not None
        assert listing.stderr is not None
        listing.stdout.readline()
        listing.stdout.close()
        assert listing.stderr.read() == b""
        assert listing.wait(20) != 0


@pytest.mark.parametrize("args", [["version"], ["job", "list", "--json"], ["job", "list"], ["migrate", "--sql"]])
def test_full_disk_is_one_line(dsn: str, args: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*DISPATCHER, *args],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=environment() | {"DISPATCHER_DSN": dsn},
        )
    assert done.stderr == "Error: No space left on device\n"
    assert done.returncode == 1


def test_completion_as_click_provides_it() -> None:
    script = subprocess.run(
        DISPATCHER, capture_output=True, text=True, check=False, env=environment(_DISPATCHER_COMPLETE="bash_source")
    )
    assert "_dispatcher_completion" in script.stdout
    words = environment(_DISPATCHER_COMPLETE="bash_complete", COMP_WORDS="dispatcher job wa", COMP_CWORD="2")
    completed = subprocess.run(DISPATCHER, capture_output=True, text=True, check=False, env=words)
    assert completed.stdout == "plain,wait\n"


def test_version_imports_neither_psycopg_nor_the_settings() -> None:
    code = "import sys; from dispatcher.cli import main; main(['version'], standalone_mode=False); "
    code += "print([name for name in ('psycopg', 'pydantic_settings', 'asyncio') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1] == "[]"


def test_dev_needs_nothing_and_leaves_nothing() -> None:
    with subprocess.Popen(
        [*DISPATCHER, "dev"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as dev:
        assert dev.stdout is not None
        assert dev.stderr is not None
        export = dev.stdout.readline()
        assert export.startswith("export DISPATCHER_DSN=")
        dsn = export.removeprefix("export DISPATCHER_DSN=").strip().strip("'")
        url = dev.stdout.readline().strip().removeprefix("export DISPATCHER_API_URL=")
        token = dev.stdout.readline().strip().removeprefix("export DISPATCHER_API_TOKEN=")
        wait_for(dev, "dispatcher.daemon: started")
        with HttpClient(url, token) as client:
            assert client.wait(client.enqueue("hello"), timeout=20).result == {"greeting": "Hello, world!"}
        done = call("enqueue", "hello", "--wait", "--json", "--dsn", dsn)
        assert json.loads(done.stdout)["result"] == {"greeting": "Hello, world!"}
        dev.send_signal(signal.SIGINT)
        assert dev.wait(30) == 0
        assert "Traceback" not in dev.stderr.read()
    folder = psycopg.conninfo.conninfo_to_dict(dsn)["host"]
    assert not Path(str(folder)).exists()
