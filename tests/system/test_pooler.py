"""A pooler between us and PostgreSQL: the daemon, whose lease is a session, refuses it; clients work through it."""

import asyncio
import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import psycopg
import pytest
from psycopg import conninfo

from dispatcher import AsyncClient, Client
from dispatcher.db import SessionLimits, connect_session
from dispatcher.embedded import EmbeddedPostgres
from dispatcher.errors import UnsupportedServer
from tests.system.api_process import ApiProcess, caller
from tests.system.pgbouncer import pooled
from tests.system.replicas import CALM, ROOT, Fleet

pytestmark = pytest.mark.system

Mode = Literal["session", "transaction"]
MODES: tuple[Mode, ...] = ("session", "transaction")
OFTEN = 12  # times: psycopg by itself prepares what it has sent five times


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> Mode:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def pooled_dsn(postgres_dsn: str, mode: Mode) -> Iterator[str]:
    """The database behind pgbouncer; in transaction mode its clients share two sessions."""
    with pooled(postgres_dsn, mode, size=2 if mode == "transaction" else 20) as dsn:
        yield dsn


@pytest.fixture
def fleet(postgres_dsn: str, tmp_path: Path) -> Iterator[Fleet]:
    """A replica that is connected directly."""
    with Fleet(postgres_dsn, tmp_path) as fleet:
        fleet.start_leader(**CALM)
        yield fleet


# The daemon


def test_a_pooler_is_detected(pooled_dsn: str) -> None:
    with pytest.raises(UnsupportedServer, match="goes through a pooler") as refused:
        connect_session(pooled_dsn, name="x", limits=SessionLimits())
    assert "\n" not in str(refused.value)


def test_a_replica_refuses_a_pooler_at_start_in_one_line(pooled_dsn: str, tmp_path: Path) -> None:
    with Fleet(pooled_dsn, tmp_path) as fleet:
        replica = fleet.launch()
        assert replica.wait() == 1
        lines = replica.log_file.read_text().splitlines()
        assert len(lines) == 1
        assert "pooler" in lines[0]
        assert "straight to PostgreSQL" in lines[0]


# Clients


def cli(dsn: str, *arguments: str) -> str:
    """What the command prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "DISPATCHER_"))}
    done = subprocess.run(
        [sys.executable, "-m", "dispatcher", *arguments],
        cwd=ROOT,
        env=environment | {"DISPATCHER_DSN": dsn},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_client_works_through_a_pooler(fleet: Fleet, pooled_dsn: str) -> None:
    held = {"until": str(fleet.gate())}
    with Client(pooled_dsn) as client, Client(pooled_dsn) as other:
        ids = [(client, other)[n % 2].enqueue("quick", {}) for n in range(OFTEN)]
        ids += client.enqueue_many("quick", [{} for _ in range(OFTEN)])
        assert {job.state for job in client.wait(ids, 20)} == {"succeeded"}
        batch = client.batch("quick", [{}, {}])
        assert client.wait(batch, 20).state == "succeeded"
        first = client.enqueue("hold", held)
        after = client.enqueue("quick", {}, after=first)
        fleet.until_started([first])
        assert client.cancel(first) == "running"
        assert other.wait(first, 20).state == "canceled"
        assert other.wait(after, 20).state == "canceled"
        fleet.gate().touch()
        assert client.retry(first) == "pending"
        assert client.wait(first, 20).state == "succeeded"
        assert client.result(first) == "held"


def test_an_enqueue_in_a_callers_transaction_commits_with_it_through_a_pooler(fleet: Fleet, pooled_dsn: str) -> None:
    with psycopg.connect(pooled_dsn, prepare_threshold=None) as mine, Client(pooled_dsn) as client:
        ids = []
        for _ in range(OFTEN):
            ids.append(client.enqueue("quick", {}, conn=mine))
            ids += client.enqueue_many("quick", [{}, {}], conn=mine)
            mine.commit()
        assert {job.state for job in client.wait(ids, 20)} == {"succeeded"}
        lost = client.enqueue("quick", {}, conn=mine)
        mine.rollback()
        assert not fleet.states([lost])


def test_an_async_client_works_through_a_pooler(fleet: Fleet, pooled_dsn: str) -> None:
    async def work() -> None:
        async with AsyncClient(pooled_dsn) as client, AsyncClient(pooled_dsn) as other:
            ids = [await (client, other)[n % 2].enqueue("quick", {}) for n in range(OFTEN)]
            ids += await client.enqueue_many("quick", [{}, {}])
            assert {job.state for job in await other.wait(ids, 20)} == {"succeeded"}
            assert (await client.get(ids[0])).attempt == 1

    asyncio.run(work())


def test_the_command_line_works_through_a_pooler(fleet: Fleet, pooled_dsn: str) -> None:
    done = json.loads(cli(pooled_dsn, "--json", "enqueue", "quick", "--wait"))
    assert done["state"] == "succeeded"
    assert "quick" in cli(pooled_dsn, "job", "list")
    assert json.loads(cli(pooled_dsn, "--json", "leader", "show"))["term"] == fleet.term()


def test_the_api_works_through_a_pooler(fleet: Fleet, pooled_dsn: str, tmp_path: Path) -> None:
    with ApiProcess(pooled_dsn, tmp_path) as api:
        api.until_serves()
        with caller(api.url, api.token()) as web:
            made = [web.post("/jobs", json={"type": "quick"}) for _ in range(OFTEN)]
            assert {answer.status_code for answer in made} == {202}
            fleet.until_all([answer.json()["id"] for answer in made])
            id = web.post("/jobs", json={"type": "hold", "payload": {"until": str(fleet.gate())}}).json()["id"]
            fleet.until_started([id])
            with web.stream("GET", f"/jobs/{id}/events") as events:
                told = events.iter_lines()
                assert next(line for line in told if line.startswith("data:"))
                fleet.gate().touch()
                assert any('"succeeded"' in line for line in told)


def test_clients_leave_nothing_in_a_session_that_others_are_given(
    fleet: Fleet, postgres_dsn: str, tmp_path: Path
) -> None:
    """Settings, locks, prepared statements, a LISTEN: in transaction mode the next one would have them."""
    with pooled(postgres_dsn, "transaction", size=1) as dsn:
        with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as conn:
            before = left_in(conn)
        test_a_client_works_through_a_pooler(fleet, dsn)
        fleet.gate().unlink()
        cli(dsn, "enqueue", "quick", "--wait")
        test_the_api_works_through_a_pooler(fleet, dsn, tmp_path)
        with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as conn:
            assert left_in(conn) == before


def left_in(conn: psycopg.Connection) -> list[tuple[str, ...]]:
    """What this session of the server's would hand on."""
    query = """
        select 'set', name, setting from pg_settings where source = 'session' and name <> 'application_name'
        union all select 'lock', locktype, objid::text from pg_locks
            where locktype = 'advisory' and pid = pg_backend_pid()
        union all select 'prepared', name, statement from pg_prepared_statements
        union all select 'listens', channel, '' from pg_listening_channels() as channel"""
    return conn.execute(query).fetchall()


# The same without pgbouncer: what every such pooler does is answer with a process id of its own.


@contextlib.contextmanager
def rewriting_proxy(port: int) -> Iterator[int]:
    """Passes one connection on; only the server's process id, in BackendKeyData, is another one."""

    def requests(client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def answers(server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError), server.makefile("rb") as stream:
            while head := stream.read(5):
                kind, size = struct.unpack("!ci", head)
                body = stream.read(size - 4)
                client.sendall(head + (struct.pack("!i", 4242) + body[4:] if kind == b"K" else body))

    def serve() -> None:
        client, _ = listener.accept()
        with client, socket.create_connection(("127.0.0.1", port)) as server:
            to_server = threading.Thread(target=requests, args=(client, server))
            to_server.start()
            answers(server, client)
            to_server.join()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def test_a_process_id_that_is_not_the_servers_gives_a_pooler_away(
    postgres: EmbeddedPostgres, postgres_dsn: str
) -> None:
    port = int(str(conninfo.conninfo_to_dict(postgres_dsn)["port"]))
    with rewriting_proxy(port) as pooled:
        # Without these two the server first answers with a lone byte.
        dsn = conninfo.make_conninfo(postgres_dsn, port=pooled, sslmode="disable", gssencmode="disable")
        with pytest.raises(UnsupportedServer, match="pooler"):
            connect_session(dsn, name="x", limits=SessionLimits())
