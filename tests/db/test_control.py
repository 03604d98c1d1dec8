"""Operators change what holds for a type: by SQL, Python and the command line, in effect at once and kept."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from dispatcher import AsyncClient, Client
from dispatcher.cli import main
from dispatcher.errors import InvalidOption, UnknownType
from dispatcher.executor import Executor
from dispatcher.queries.fleet import TypeInfo
from tests.db.running import nothing, publish, value

MAIL = Executor("mail", nothing, "tests.mail", limit=4, tenant_limit=2, rate=5.0)
PLAIN = Executor("plain", nothing, "tests.plain")


@pytest.fixture
def client(dsn: str, conn: psycopg.Connection[Any]) -> Iterator[Client]:
    publish(conn, MAIL, PLAIN)
    with Client(dsn) as made:
        yield made


@pytest.fixture
def run(dsn: str, client: Client) -> Callable[..., Result]:
    env = {"DISPATCHER_DSN": dsn, "DATABASE_URL": None, "DISPATCHER_CONFIG": None}
    return lambda *args, **kwargs: CliRunner(env=env).invoke(main, args, prog_name="dispatcher", **kwargs)


def info(client: Client, name: str = "mail") -> TypeInfo:
    [found] = [one for one in client.types() if one.name == name]
    return found


def test_what_an_operator_says_goes_before_the_code_and_outlives_its_publishing(
    client: Client, conn: psycopg.Connection[Any]
) -> None:
    before = info(client)
    assert (before.limit, before.limit_from, before.rate, before.rate_from, before.burst) == (4, "code", 5.0, "code", 5)
    client.set_limit("mail", limit=9, rate="120/min")
    client.set_limit("mail", tenant_limit=3)
    client.set_limit("mail", limit=1, tenant="acme")
    publish(conn, MAIL, PLAIN)  # a replica starts
    now = info(client)
    assert (now.limit, now.limit_from, now.tenant_limit, now.tenant_limit_from) == (9, "database", 3, "database")
    assert (now.rate, now.rate_from, now.burst) == (2.0, "database", 2)
    assert now.tenant_limits == {"acme": 1}
    client.set_limit("mail", limit=None, tenant_limit=None, rate=None)
    client.set_limit("mail", limit=None, tenant="acme")
    assert info(client) == before
    assert value(conn, "select count(*) from dispatcher.control") == 0
    plain = info(client, "plain")
    assert (plain.limit, plain.limit_from, plain.rate, plain.burst, plain.paused_at) == (None, None, None, None, None)


def test_pause_and_resume_say_whether_they_changed_anything(client: Client, conn: psycopg.Connection[Any]) -> None:
    assert client.pause("mail")
    since = info(client).paused_at
    assert not client.pause("mail")
    assert (info(client).paused_at, info(client).paused_by) == (since, value(conn, "select session_user"))
    client.set_limit("mail", limit=2)
    assert client.resume("mail")
    assert not client.resume("mail")
    assert (info(client).paused_at, info(client).limit) == (None, 2)


def test_limit_set_beside_one_who_takes_all_back_is_kept(
    dsn: str, client: Client, conn: psycopg.Connection[Any]
) -> None:
    client.set_limit("mail", limit=5)
    with psycopg.connect(dsn) as other, Client(dsn) as waiting:
        other.execute("select from dispatcher.control for update")
        setting = threading.Thread(target=waiting.set_limit, args=("mail",), kwargs={"limit": 7})
        setting.start()
        waits = "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        while not value(conn, f"select exists ({waits})"):
            pass
        client.set_limit("mail", limit=None, conn=other)  # its row goes
        other.commit()
        setting.join()
    assert info(client).limit == 7


def test_leaders_hear_of_it_at_commit_and_only_then(dsn: str, client: Client, conn: psycopg.Connection[Any]) -> None:
    with psycopg.connect(dsn, autocommit=True) as listening, psycopg.connect(dsn) as own:
        listening.execute("listen dispatcher_fleet")  # of all leases
        client.pause("mail", conn=own)
        own.rollback()
        assert info(client).paused_at is None
        client.set_limit("mail", limit=3, conn=own)
        own.commit()
        heard = [(note.channel, note.payload) for note in listening.notifies(timeout=10, stop_after=1)]
    assert heard == [("dispatcher_fleet", "control")]


BAD = [
    ({"limit": 0}, "option 'limit' must be a whole number of 1 or more"),
    ({"limit": 1.5}, "option 'limit' must be a whole number"),
    ({"limit": "5"}, "option 'limit' must be a whole number"),
    ({"tenant_limit": -1}, "option 'tenant_limit' must be a whole number"),
    ({"rate": 0}, "option 'rate' must be more than zero"),
    ({"rate": -2}, "option 'rate' must be more than zero"),
    ({"rate": "5/week"}, "option 'rate' must be more than zero"),
    ({"rate": "nan"}, "option 'rate' must be more than zero"),
    ({"burst": 0}, "option 'burst' must be a whole number"),
    ({"tenant": "", "limit": 1}, "option 'tenant' must be a text"),
    ({"tenant": "x", "rate": 1}, "with 'tenant' give 'limit' alone"),
    ({"tenant": "x"}, "give at least one of limit"),
    ({}, "give at least one of limit"),
]


@pytest.mark.parametrize(("options", "told"), [*BAD, ({"limt": 1}, "unknown option 'limt'"), ([], "give at least")])
def test_bad_limit_is_refused_by_sql(client: Client, conn: psycopg.Connection[Any], options: Any, told: str) -> None:
    assert client.types()
    with pytest.raises(psycopg.Error, match=told) as caught:
        conn.execute("select dispatcher.set_limit('mail', %s::jsonb)", (json.dumps(options),))
    assert caught.value.sqlstate == "DJ004"
    assert value(conn, "select count(*) from dispatcher.control") == 0


@pytest.mark.parametrize(("options", "told"), [*BAD, ({"rate": float("nan")}, "cannot be sent")])
def test_bad_limit_is_refused_by_python(
    client: Client, conn: psycopg.Connection[Any], options: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidOption, match=told):
        client.set_limit("mail", **options)
    assert value(conn, "select count(*) from dispatcher.control") == 0


def test_burst_without_any_rate_is_refused(client: Client) -> None:
    with pytest.raises(InvalidOption, match="'burst' goes with a rate"):
        client.set_limit("plain", burst=5)
    client.set_limit("plain", burst=5, rate=1)
    assert info(client, "plain").burst == 5
    client.set_limit("plain", rate=None)
    assert (info(client, "plain").rate, info(client, "plain").burst) == (None, None)


def test_unknown_type_is_refused(client: Client, conn: psycopg.Connection[Any]) -> None:
    acts: list[Callable[[Any], Any]] = [client.pause, client.resume, lambda type: client.set_limit(type, limit=1)]
    for act in acts:
        with pytest.raises(UnknownType, match="known types: mail, plain"):
            act("nix")
        for name in ("\0", "\ud800", None):
            with pytest.raises(UnknownType, match="cannot be a job type"):
                act(name)
    assert value(conn, "select count(*) from dispatcher.control") == 0


def test_async_client_controls_types(dsn: str, client: Client) -> None:
    async def body() -> None:
        async with AsyncClient(dsn) as own:
            assert await own.pause("mail")
            assert await own.resume("mail")
            await own.set_limit("mail", limit=7, rate=None)

    asyncio.run(body())
    assert info(client).limit == 7


def test_command_line(run: Callable[..., Result], client: Client) -> None:
    assert run("type", "pause", "mail").stdout == "paused\n"
    assert run("type", "pause", "mail").stdout == "already paused\n"
    assert "by app" in run("type", "list").stdout
    assert json.loads(run("type", "resume", "mail", "--json").stdout) == {"type": "mail", "changed": True}
    assert run("type", "resume", "mail").stdout == "not paused\n"
    set_all = run("type", "limit", "mail", "--limit", "6", "--tenant-limit", "none", "--rate", "90/min", "--burst", "3")
    assert set_all.stdout == "mail: limit 6, of each tenant 2, rate 1.5/s, burst 3\n"
    assert run("type", "limit", "mail", "--limit", "1", "--tenant", "acme").stdout.endswith("of tenant acme 1\n")
    line = run("type", "list").stdout.splitlines()[1]
    assert line.split()[:9] == ["mail", "thread", "6*", "2,", "acme", "1*", "1.5/s*,", "burst", "3*"]
    [shown] = [one for one in json.loads(run("type", "list", "--json").stdout) if one["name"] == "mail"]
    assert (shown["limit"], shown["limit_from"], shown["tenant_limits"]) == (6, "database", {"acme": 1})
    assert info(client).limit == 6


def test_star_marks_what_an_operator_said_and_nothing_else(run: Callable[..., Result], client: Client) -> None:
    client.set_limit("mail", burst=2)
    for tenant in ("a", "b", "c", "d", "e"):
        client.set_limit("plain", limit=1, tenant=tenant)
    table = run("type", "list").stdout
    assert "5/s, burst 2*" in table
    assert "a 1*, b 1*, c 1*, 2 more*" in table
    assert (info(client).rate_from, info(client).burst_from) == ("code", "database")
    client.set_limit("mail", burst=None, rate=2)
    assert "2/s*, burst 2 " in run("type", "list").stdout


@pytest.mark.parametrize(
    ("args", "status", "told"),
    [
        (("mail",), 2, "give at least one of --limit"),
        (("mail", "--limit", "0"), 2, "no whole number of 1 or more"),
        (("mail", "--limit", "9" * 5000), 2, "no whole number of 1 or more"),
        (("mail", "--rate", "0"), 2, "a rate is more than zero"),
        (("mail", "--rate", "nan"), 2, "a rate is more than zero"),
        (("plain", "--burst", "2"), 1, "goes with a rate"),
        (("nix", "--limit", "2"), 1, "unknown job type 'nix'"),
    ],
)
def test_command_line_refuses_in_one_line(
    run: Callable[..., Result], conn: psycopg.Connection[Any], args: tuple[str, ...], status: int, told: str
) -> None:
    result = run("type", "limit", *args)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (status, "", 1)
    assert told in result.stderr
    assert value(conn, "select count(*) from dispatcher.control") == 0
