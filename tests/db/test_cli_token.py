"""dispatcher token: shown once, listed without what makes them valid, void once revoked."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result

from dispatcher.cli import main
from dispatcher.db import Connection
from tests.db.running import publish, until, value
from tests.db.serving import Served

Run = Callable[..., Result]


@pytest.fixture
def run(dsn: str) -> Run:
    env = {"DISPATCHER_DSN": dsn, "DATABASE_URL": None, "DISPATCHER_CONFIG": None}
    return lambda *args: CliRunner().invoke(main, ["token", *args], env=env)


def test_a_token_from_the_command_line_lets_its_bearer_in_until_it_is_revoked(
    run: Run, dsn: str, conn: Connection
) -> None:
    publish(conn)
    made = run("create", "shop", "--tenant", "acme", "--role", "read", "--expires", "90d")
    token = made.stdout.strip()
    assert (made.exit_code, len(made.stdout.splitlines())) == (0, 1), "data alone on standard output"
    assert "shown this once" in made.stderr
    assert token not in made.stderr
    with Served(dsn) as served:
        caller = served.caller(token)
        assert caller.get("/jobs").status_code == 200
        assert caller.post("/jobs", json={"type": "quick"}).status_code == 403
        [listed] = json.loads(run("list", "--json").stdout)
        assert (listed["name"], listed["tenant"], listed["role"], listed["expired"]) == ("shop", "acme", "read", False)
        assert token not in run("list").stdout
        assert value(conn, "select expires_at - created_at = interval '90 days' from dispatcher.token")
        assert run("revoke", str(listed["id"])).exit_code == 0
        until(lambda: caller.get("/jobs").status_code == 401)
    assert "revoked" in run("list").stdout
    assert json.loads(run("revoke", str(listed["id"]), "--json").stdout)["changed"] is False


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (["create"], 2, "NAME"),
        (["create", "x", "--role", "boss"], 2, "boss"),
        (["create", "x", "--expires", "soon"], 2, "soon"),
        (["create", "x", "--expires", "0s"], 1, "lifetime"),
        (["create", "x", "--tenant", ""], 1, "1 to 200"),
        (["revoke", "abc"], 2, "abc"),
        (["revoke", "4711"], 1, "no token 4711"),
        (["revoke", str(2**70)], 1, "no token"),
    ],
)
def test_what_is_wrong_is_one_line(run: Run, conn: Connection, args: list[str], status: int, words: str) -> None:
    done = run(*args)
    assert (done.exit_code, len(done.stderr.splitlines()), done.stdout) == (status, 1, "")
    assert words in done.stderr
    assert value(conn, "select count(*) from dispatcher.token") == 0


def test_tokens_are_listed_for_people(run: Run) -> None:
    run("create", "ops", "--role", "admin")
    lines = run("list").stdout.splitlines()
    assert lines[0].split() == ["ID", "NAME", "TENANT", "ROLE", "STATE", "CREATED", "EXPIRES", "USED"]
    assert lines[1].split()[1:5] == ["ops", "(all)", "admin", "valid"]
