"""Batches and dependencies through the Python clients and the command line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
from click.testing import CliRunner, Result

from dispatcher import AsyncClient, Callback, Client, State
from dispatcher.cli import main
from dispatcher.context import Context
from dispatcher.errors import InvalidOption, InvalidPayload, JobNotFound, PayloadTooLarge, UnknownType, WrongState
from dispatcher.operations import CHUNK
from dispatcher.runtime import JobRuntime
from tests.db.front_door import count, publish
from tests.db.linking import Linking, children, counts
from tests.db.running import OWNER, as_job, value

Run = Callable[..., Result]


@pytest.fixture
def linking(dsn: str, conn: psycopg.Connection[Any]) -> Iterator[Linking]:
    publish(conn)
    linking = Linking(dsn)
    yield linking
    linking.close()


@pytest.fixture
def client(dsn: str, linking: Linking) -> Iterator[Client]:
    with Client(dsn) as made:
        yield made


@pytest.fixture
def run(dsn: str, linking: Linking) -> Run:
    env = {"DISPATCHER_DSN": dsn, "DATABASE_URL": None, "DISPATCHER_CONFIG": None}
    return lambda *args, **kwargs: CliRunner(env=env).invoke(main, args, prog_name="dispatcher", **kwargs)


def test_life_of_a_batch(client: Client, linking: Linking) -> None:
    id = client.batch(
        "any", ({"n": n} for n in range(3)), callback=Callback("import", {"into": "t"}, {"priority": -1}), tenant="t"
    )
    batch = client.get_batch(id)
    assert (batch.state, batch.type, batch.tenant, batch.total, batch.pending) == (State.RUNNING, "any", "t", 3, 3)
    assert batch.callback_id is not None
    callback = client.get(batch.callback_id)
    assert (callback.state, callback.payload, callback.priority) == (State.BLOCKED, {"into": "t"}, -1)
    assert client.get(id).type == "batch"
    child = client.get(client.enqueue("any", parent=id))
    assert (child.parent_id, child.tenant) == (id, "t")
    linking.run(type="any", tenant="t")
    assert client.wait(id, timeout=5).state is State.SUCCEEDED
    assert client.result(id) == {"total": 4, "succeeded": 4, "partial": 0, "failed": 0, "canceled": 0}
    batch = client.get_batch(id)
    assert (batch.succeeded, batch.total) == (4, 4)
    assert batch.finished_at is not None
    assert client.get(callback.id).state is State.PENDING
    with pytest.raises(WrongState, match="has ended"):
        client.enqueue("any", parent=id)


def test_large_batch_is_sent_in_chunks_and_stands_or_falls_as_one(
    client: Client, conn: psycopg.Connection[Any], dsn: str
) -> None:
    total = 2 * CHUNK + 1
    id = client.batch("any", [{}] * total)
    assert client.get_batch(id).total == total
    assert len(children(conn, id)) == total
    before = count(conn)
    with pytest.raises(PayloadTooLarge, match=f"payload {CHUNK + 7}: "):
        client.batch("any", [*[{}] * (CHUNK + 6), {"x": "y" * 2000}])
    with psycopg.connect(dsn) as own:
        client.batch("any", [{}] * total, conn=own)
        own.rollback()
    assert count(conn) == before


def test_all_jobs_of_a_large_batch_wait(client: Client, conn: psycopg.Connection[Any]) -> None:
    """The predecessors come from an iterator, which can be read only once, and the jobs in several chunks."""
    before = client.enqueue_many("any", [{}, {}])
    id = client.batch("any", [{}] * (CHUNK + 1), after=iter(before), on_failure="run")
    assert client.get_batch(id).blocked == CHUNK + 1
    assert value(conn, "select count(*) from dispatcher.dependency") == 2 * (CHUNK + 1)


def test_payload_of_a_callback_is_checked_against_its_schema(client: Client, conn: psycopg.Connection[Any]) -> None:
    conn.execute(
        "update dispatcher.type set payload_schema = %s where name = 'import'",
        ('{"type": "object", "required": ["into"]}',),
    )
    for payload in (None, {}, {"to": 1}):
        with pytest.raises(InvalidPayload, match="callback: the payload does not fit 'import'"):
            client.batch("any", [{}], callback=Callback("import", payload))
    assert count(conn) == 0
    assert client.get_batch(client.batch("any", [{}], callback=Callback("import", {"into": 1}))).callback_id


@pytest.mark.parametrize(
    ("payloads", "options", "kind", "told"),
    [
        ([], {}, InvalidOption, "a batch needs at least one job"),
        ([{}, 1], {}, InvalidPayload, "payload 2: the payload must be"),
        ([{}], {"callback": "nix"}, UnknownType, "callback: unknown job type 'nix'"),
        ([{}], {"callback": 5}, InvalidOption, "callback must be"),
        ([{}], {"callback": Callback("any", 5)}, InvalidPayload, "callback: the payload must be"),
        ([{}], {"callback": Callback("a\0b")}, UnknownType, "callback: 'a.*b' cannot be a job type"),
        ([{}], {"callback": Callback("\ud800")}, UnknownType, "callback: '.*' cannot be a job type"),
        ([{}], {"callback": Callback(cast(Any, None))}, UnknownType, "callback: None cannot be a job type"),
        (
            [{}],
            {"callback": Callback("any", {}, cast(Any, [1]))},
            InvalidOption,
            "callback: its options must be a dict",
        ),
        ([{}], {"callback": Callback("any", {}, {"nix": 1})}, InvalidOption, "callback: unknown option 'nix'"),
        ([{}], {"callback": Callback("any", {}, {"after": 1})}, InvalidOption, "options of a callback"),
        ([{}], {"parent": 1}, InvalidOption, "do not go with a batch"),
        ([{}], {"unique_key": "k"}, InvalidOption, "do not go with a batch"),
        ([{}], {"after": 99}, InvalidOption, "there is no job 99"),
        ([{}], {"after": "7"}, InvalidOption, "after takes the id of a job"),
        ([{}], {"after": [True]}, InvalidOption, "after takes the id of a job"),
        ([{}], {"after": 7, "on_failure": "x"}, InvalidOption, "on_failure must be"),
    ],
)
def test_bad_batch_is_refused(
    client: Client, conn: psycopg.Connection[Any], payloads: Any, options: Any, kind: type[Exception], told: str
) -> None:
    with pytest.raises(kind, match=told):
        client.batch("any", payloads, **options)
    assert count(conn) == 0
    with pytest.raises(JobNotFound, match="there is no batch 5"):
        client.get_batch(5)


def test_async_client_knows_batches(dsn: str, linking: Linking) -> None:
    async def body() -> None:
        async with AsyncClient(dsn) as client:
            id = await client.batch("any", [{}, {}], callback="any")
            assert (await client.get_batch(id)).total == 2
            waits = await client.enqueue("any", after=[id])
            assert [job.id for job in await client.predecessors(waits)] == [id]
            assert await client.cancel(id) == "running"
            keys = await client.enqueue_many_unique("any", [{}, {}], ["a", "a"])
            assert [created for _, created in keys] == [True, False]

    asyncio.run(body())


def test_executor_reads_what_its_predecessors_returned(
    dsn: str, client: Client, conn: psycopg.Connection[Any], linking: Linking
) -> None:
    good, bad = client.enqueue("any"), client.enqueue("any")
    batch = client.batch("any", [{}])
    id = client.enqueue("any", after=[good, bad, batch], on_failure="run")
    for one in linking.claim("any").values():
        linking.end(one, State.FAILED if one.id == bad else State.SUCCEEDED, {"n": one.id})
    linking.link()
    claimed = linking.claim("any")[id]
    runtime = JobRuntime(dsn=dsn, installation=value(conn, "select id from dispatcher.installation"), owner=OWNER)
    ctx = Context(as_job(claimed), timeout_s=None, runtime=runtime)
    assert ctx.results() == {good: {"n": good}, batch: client.result(batch)}
    assert [job.state for job in ctx.predecessors()] == [State.SUCCEEDED, State.FAILED, State.SUCCEEDED]
    runtime.close()


def test_retry_of_a_batch_says_that_it_runs(client: Client, linking: Linking) -> None:
    id = client.batch("any", [{}, {}])
    linking.run(State.FAILED, type="any")
    assert client.get(id).errors[-1]["message"] == "of 2 jobs 2 failed and 0 were canceled"
    assert client.retry(id) == "running"
    linking.run(type="any")
    with pytest.raises(WrongState, match="no failed or canceled jobs"):
        client.retry(id)


def write(folder: Path, *lines: Any) -> str:
    path = folder / "jobs.ndjson"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_command_makes_a_batch_of_a_file(
    run: Run, tmp_path: Path, conn: psycopg.Connection[Any], linking: Linking
) -> None:
    file = write(tmp_path, {"n": 1}, {"n": 2})
    made = run("enqueue", "any", "--file", file, "--batch", "--callback", "any", "--callback-payload", '{"x": 1}')
    assert made.exit_code == 0, made.output
    id = int(made.stdout)
    shown = run("batch", "show", str(id))
    assert [line.split() for line in shown.stdout.splitlines()[:5]] == [
        ["id", str(id)],
        ["state", "running"],
        ["type", "any"],
        ["jobs", "2"],
        ["pending", "2"],
    ]
    waits = run("enqueue", "any", "--after", str(id), "--on-failure", "run")
    assert ["after", f"{id}", "(running)"] in [
        line.split() for line in run("job", "show", waits.stdout.strip()).stdout.splitlines()
    ]
    assert json.loads(run("job", "show", waits.stdout.strip(), "--json").stdout)["after"] == [id]
    child = run("enqueue", "any", "--parent", str(id))
    assert json.loads(run("job", "show", child.stdout.strip(), "--json").stdout)["parent_id"] == id
    assert json.loads(run("batch", "show", str(id), "--json").stdout)["pending"] == 3
    linking.run(type="any")
    assert counts(conn, id) == {"succeeded": 3}
    assert json.loads(run("job", "show", waits.stdout.strip(), "--json").stdout)["state"] == "pending"


def test_command_takes_the_unique_key_from_a_field(run: Run, tmp_path: Path, conn: psycopg.Connection[Any]) -> None:
    file = write(tmp_path, {"k": "a"}, {"k": 7}, {"k": "a"})
    assert (
        run("enqueue", "any", "--file", file, "--unique-field", "k").stdout == "2 jobs enqueued, 1 were there already\n"
    )
    again = json.loads(run("enqueue", "any", "--file", file, "--unique-field", "k", "--json").stdout)
    assert (again["count"], again["created"]) == (3, 0)
    for bad in ({"k": None}, {"x": 1}, {"k": True}, {"k": ""}):
        refused = run("enqueue", "any", "--file", write(tmp_path, {"k": "b"}, bad), "--unique-field", "k")
        assert refused.exit_code == 1
        assert refused.stderr.startswith("Error: line 2: field 'k'")
    assert count(conn) == 2


@pytest.mark.parametrize(
    ("args", "status", "told"),
    [
        (("enqueue", "any", "--batch"), 2, "--batch and --unique-field go with --file"),
        (("enqueue", "any", "--callback", "any"), 2, "--callback goes with --batch"),
        (("enqueue", "any", "--after", "99"), 1, "there is no job 99"),
        (("enqueue", "any", "--parent", "99"), 1, "job 99 is no batch"),
        (("enqueue", "any", "--on-failure", "run"), 1, "'on_failure' goes with 'after'"),
        (("enqueue", "any", "--file", "-", "--batch"), 1, "a batch needs at least one job"),
        (("batch", "show", "99"), 1, "there is no batch 99"),
    ],
)
def test_command_refuses_in_one_line(
    run: Run, conn: psycopg.Connection[Any], args: tuple[str, ...], status: int, told: str
) -> None:
    result = run(*args)
    assert (result.exit_code, result.stdout) == (status, "")
    assert told in result.stderr
    assert result.stderr.count("\n") == 1
    assert count(conn) == 0
