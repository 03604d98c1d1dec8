"""dispatcher job list, retry and purge with flags that say which jobs; nothing is done that was not asked for."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from dispatcher.cli import ended as command
from dispatcher.cli import main
from dispatcher.client import Client
from dispatcher.queries import listing
from tests.db.front_door import count, end, publish
from tests.db.running import state

Conn = psycopg.Connection[Any]
Run = Callable[..., Result]


@pytest.fixture
def run(dsn: str, conn: Conn) -> Run:
    """The command on a database with five failed jobs, a canceled, a succeeded and a pending one."""
    publish(conn)
    with Client(dsn) as client:
        client.enqueue_many("any", [{}] * 7)
        client.enqueue("import", tenant="t")
    for id in range(1, 5):
        end(conn, id, "failed", error="bad\x1b[31m luck")
    end(conn, 5, "canceled")
    end(conn, 6, "succeeded")
    end(conn, 8, "failed", error="no luck")

    def run(*args: str, **kwargs: Any) -> Result:
        env = {"DISPATCHER_DSN": dsn, "DATABASE_URL": None, "DISPATCHER_CONFIG": None}
        return CliRunner(env=env).invoke(main, ["job", *args], prog_name="dispatcher", **kwargs)

    return run


def listed(run: Run, *flags: str) -> list[int]:
    result = run("list", "--json", *flags)
    assert result.exit_code == 0, result.stderr
    return [job["id"] for job in json.loads(result.stdout)]


def refused(result: Result, told: str, status: int) -> None:
    assert told in result.stderr
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert result.exit_code == status


@pytest.mark.parametrize(
    ("flags", "ids"),
    [
        ([], [8, 7, 6, 5, 4, 3, 2, 1]),
        (["--state", "failed", "--state", "canceled"], [8, 5, 4, 3, 2, 1]),
        (["--state", "failed", "--type", "import", "--tenant", "t"], [8]),
        (["--kind", "exception", "--since", "1h"], [8, 4, 3, 2, 1]),
        (["--kind", "timeout"], []),
        (["--until", "2020-01-31T12:00:00+01:00"], []),
        (["--until", "2h"], []),
        (["--state", "failed", "--before", "4", "--limit", "2"], [3, 2]),
        (["--parent", "77"], []),
    ],
)
def test_list_by_flags(run: Run, flags: list[str], ids: list[int]) -> None:
    assert listed(run, *flags) == ids


def test_list_says_where_to_go_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("list", "--limit", "3").stderr == "there may be more: --before 6\n"
    assert run("list", "--limit", "3", "--before", "3").stderr == ""
    monkeypatch.setattr(listing, "EXAMINE", dict.fromkeys(listing.EXAMINE, 2))
    assert listed(run, "--type", "any", "--limit", "7") == [7, 6, 5, 4, 3, 2, 1]
    monkeypatch.setattr(command, "PATIENCE_S", 0.0)
    short = run("list", "--type", "any", "--limit", "2")
    assert [line.split()[0] for line in short.stdout.splitlines()] == ["ID", "7"]
    assert short.stderr == "there may be more: --before 7\n"


def test_retry_by_flags_does_what_the_preview_says(run: Run, conn: Conn) -> None:
    flags = ["--failed", "--type", "any", "--message", "luck"]
    assert run("retry", *flags, "--dry-run").stdout == "4\n"
    assert json.loads(run("retry", *flags, "--dry-run", "--yes", "--json").stdout) == {"count": 4}
    assert listed(run, "--state", "failed") == [8, 4, 3, 2, 1]
    result = run("retry", *flags, "--limit", "3", "--yes")
    assert (result.stdout, result.stderr, result.exit_code) == ("3 retried\n", "", 0)
    assert json.loads(run("retry", "--all", "--yes", "--json").stdout) == {"retried": 2, "skipped": 0}
    assert listed(run, "--state", "pending") == [8, 7, 4, 3, 2, 1]


def test_since_this_very_moment_is_a_filter_too(run: Run, conn: Conn) -> None:
    assert run("purge", "--state", "failed", "--since", "0s", "--yes").stdout == "0 purged\n"
    assert run("retry", "--failed", "--since", "0", "--dry-run").stdout == "0\n"
    assert run("purge", "--until", "0s", "--dry-run").stdout == "5\n"


def test_retry_says_how_many_it_passed_by(run: Run, conn: Conn) -> None:
    conn.execute("update dispatcher.job set unique_key = 'k' where id in (1, 7)")
    result = run("retry", "--failed", "--yes")
    assert result.stdout == "4 retried\n"
    assert result.stderr == "1 not retried: locked, their unique key taken, or a batch without failed jobs\n"


def test_purge_by_flags(run: Run, conn: Conn) -> None:
    assert run("purge", "--state", "succeeded", "--state", "canceled", "--dry-run").stdout == "2\n"
    assert run("purge", "--state", "succeeded", "--state", "canceled", "--yes").stdout == "2 purged\n"
    assert json.loads(run("purge", "--all", "--limit", "2", "--yes", "--json").stdout) == {"purged": 2, "skipped": 0}
    assert listed(run) == [7, 3, 2, 1]


def test_no_time_ago_is_a_time_as_well(run: Run, conn: Conn) -> None:
    assert run("purge", "--type", "any", "--since", "0", "--yes").stdout == "0 purged\n"
    assert run("retry", "--type", "any", "--since", "0s", "--dry-run").stdout == "0\n"
    assert run("retry", "--until", "0", "--yes").stdout == "5 retried\n"


@pytest.mark.parametrize(
    ("args", "told", "status"),
    [
        (["retry"], "give the ids of jobs, or flags that say which, such as --failed; not both", 2),
        (["retry", "1", "--failed"], "not both", 2),
        (["retry", "1", "--dry-run"], "--dry-run goes with flags that say which jobs, not with their ids", 2),
        (["retry", "--limit", "5", "--yes"], "give the ids of jobs, or flags", 2),
        (["retry", "--failed"], "there is no terminal to ask on: give --yes, or --dry-run", 2),
        (["retry", "--state", "succeeded", "--yes"], "'succeeded' is not one of 'failed', 'partial', 'canceled'", 2),
        (["purge", "--yes"], "say which jobs, or --all for all failed ones", 2),
        (["purge", "--limit", "5", "--yes"], "say which jobs, or --all", 2),
        (["purge", "--all"], "there is no terminal to ask on", 2),
        (["purge", "--state", "pending", "--yes"], "'pending' is not one of", 2),
        (["purge", "--since", "2030-01-31T12:00:00", "--yes"], "has no time zone and none is assumed", 2),
        (
            ["purge", "--since", "yesterday", "--yes"],
            "is neither a time, such as 2030-01-31T12:00:00Z, nor how long ago",
            2,
        ),
        (["purge", "--since", "1h", "--until", "2h", "--yes"], "filter 'since' must be before 'until'", 1),
        (["purge", "--type", "x" * 201, "--yes"], "filter 'type' must be a text of 1 to 200 characters", 1),
        (["list", "--type", "", "--json"], "type must be a text of 1 to 200 characters", 1),
        (["list", "--since=-2h"], "is neither a time", 2),
    ],
)
def test_a_slip_is_one_line_and_nothing_is_done(run: Run, conn: Conn, args: list[str], told: str, status: int) -> None:
    refused(run(*args), told, status)
    assert count(conn) == 8
    assert listed(run, "--state", "failed") == [8, 4, 3, 2, 1]


@pytest.mark.parametrize(("answer", "status"), [("n\n", 1), ("\n", 1), ("y\n", 0)])
def test_on_a_terminal_it_asks(run: Run, dsn: str, conn: Conn, answer: str, status: int) -> None:
    ours, theirs = pty.openpty()
    try:
        os.write(ours, answer.encode())
        done = subprocess.run(
            [sys.executable, "-m", "dispatcher", "job", "purge", "--all", "--dsn", dsn],
            stdin=theirs,
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.stderr.startswith("5 jobs would be removed for good\nGo on? [y/N]: ")
    assert done.returncode == status
    assert done.stdout == ("5 purged\n" if status == 0 else "")
    assert count(conn) == (3 if status == 0 else 8)


@pytest.mark.parametrize("flags", [["--failed"], ["--since", "1h"], ["--until", "0"]])
def test_what_ended_after_the_preview_is_left_alone(
    run: Run, monkeypatch: pytest.MonkeyPatch, conn: Conn, flags: list[str]
) -> None:
    def agree(*_: Any, **__: Any) -> bool:
        time.sleep(0.05)  # so that times differ
        end(conn, 7, "failed", error="after the question")
        return True

    monkeypatch.setattr(command, "on_terminal", lambda: True)
    monkeypatch.setattr("click.confirm", agree)
    result = run("retry", *flags)
    assert (result.stdout, result.stderr) == ("5 retried\n", "5 jobs would be retried\n")
    assert state(conn, 7) == "failed"


def test_nothing_is_asked_where_nothing_matches(run: Run, monkeypatch: pytest.MonkeyPatch, conn: Conn) -> None:
    monkeypatch.setattr(command, "on_terminal", lambda: True)
    result = run("retry", "--type", "nobody's")
    assert (result.stdout, result.stderr, result.exit_code) == ("0 retried\n", "0 jobs would be retried\n", 0)
    assert state(conn, 1) == "failed"
