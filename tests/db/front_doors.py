"""Every front door with the client's own methods, so that one test can go through any of them.

Client and http.Client are such doors as they are. A refusal is an error of ours behind each door; the command tells
only its line, so its kind is not known. Anything else that a door raises is a fault.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any

import psycopg
from click.testing import CliRunner
from psycopg.rows import dict_row

from dispatcher import AsyncClient, Callback, Client, http
from dispatcher.cli import main
from dispatcher.errors import BY_SQLSTATE, DispatcherError, JobNotFound, WrongState
from dispatcher.job import JobInfo, State
from dispatcher.options import seconds
from dispatcher.queries.ended import Purged, Retried
from tests.db.serving import Served

COLUMNS = ", ".join(field.name for field in fields(JobInfo))
DATABASE_DOORS = ("sql", "client", "async", "cli")
DOORS = (*DATABASE_DOORS, "http")
ENDED = ("succeeded", "partial", "failed")


class CommandRefused(DispatcherError):
    """The command said no, in one line."""


@contextmanager
def opened(dsn: str, served: Served) -> Iterator[dict[str, Any]]:
    """All of them, on one database."""
    with ExitStack() as stack:
        yield {
            "sql": Sql(stack.enter_context(psycopg.connect(dsn, autocommit=True))),
            "client": stack.enter_context(Client(dsn)),
            "async": stack.enter_context(Async(dsn)),
            "cli": Command(dsn),
            "http": stack.enter_context(http.Client(served.url, served.token(role="admin"))),
        }


class Async:
    """An AsyncClient as blocking code sees it."""

    def __init__(self, dsn: str) -> None:
        self._runner = asyncio.Runner()
        self._client = AsyncClient(dsn)

    def __enter__(self) -> Async:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **options: self._runner.run(getattr(self._client, name)(*args, **options))


def _option(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def as_json(options: dict[str, Any]) -> str:
    """Options as a program that speaks SQL would write them."""
    return json.dumps({name: _option(value) for name, value in options.items()})


class Sql:
    """A session of any program."""

    def __init__(self, conn: psycopg.Connection[Any]) -> None:
        self._conn = conn

    def _rows(self, query: str, *params: Any) -> list[dict[str, Any]]:
        try:
            with self._conn.cursor(row_factory=dict_row) as cursor:
                return cursor.execute(query.encode(), params).fetchall()
        except psycopg.Error as exc:
            if (kind := BY_SQLSTATE.get(exc.sqlstate or "")) is None:
                raise
            raise kind(exc.diag.message_primary) from exc

    def _value(self, query: str, *params: Any) -> Any:
        (row,) = self._rows(query, *params)
        (value,) = row.values()
        return value

    def enqueue_unique(self, type: str, payload: Any, **options: Any) -> tuple[int, bool]:
        query = "select id, created from dispatcher.enqueue_unique(%s, %s::jsonb, %s::jsonb)"
        (row,) = self._rows(query, type, json.dumps(payload), as_json(options))
        return row["id"], row["created"]

    def enqueue_many(self, type: str, payloads: Sequence[Any], **options: Any) -> list[int]:
        query = "select * from dispatcher.enqueue_many(%s, %s::jsonb[], %s::jsonb) as e (id)"
        return [row["id"] for row in self._rows(query, type, [*map(json.dumps, payloads)], as_json(options))]

    def batch(self, type: str, payloads: Sequence[Any], callback: Callback | None = None, **options: Any) -> int:
        if callback is not None:
            payload, given = callback.payload, dict(callback.options)
            options["callback"] = {"type": callback.type, "payload": payload, "options": given}
        query = "select dispatcher.enqueue_batch(%s, %s::jsonb[], %s::jsonb)"
        return int(self._value(query, type, [*map(json.dumps, payloads)], as_json(options)))

    def get(self, id: int) -> JobInfo:
        rows = self._rows(f"select {COLUMNS} from dispatcher.jobs where id = %s", id)
        if not rows:
            raise JobNotFound(f"there is no job {id}")
        row = rows[0] | {"state": State(rows[0]["state"]), "timeout": rows[0]["timeout"] or timedelta()}
        return JobInfo(**row)

    def cancel(self, id: int) -> str:
        left_in = str(self._value("select dispatcher.cancel(%s)", id))
        if left_in in ENDED:
            raise WrongState(left_in)
        return left_in

    def retry(self, id: int) -> str:
        return str(self._value("select dispatcher.retry(%s)", id))

    def pause(self, type: str) -> bool:
        return bool(self._value("select dispatcher.pause(%s)", type))

    def resume(self, type: str) -> bool:
        return bool(self._value("select dispatcher.resume(%s)", type))

    def set_limit(self, type: str, **limits: Any) -> None:
        self._value("select dispatcher.set_limit(%s, %s::jsonb)", type, json.dumps(limits))

    def count_ended(self, **filters: Any) -> int:
        return int(self._value("select dispatcher.count_ended(%s::jsonb)", json.dumps(filters)))

    def retry_where(self, **filters: Any) -> Retried:
        (row,) = self._rows("select * from dispatcher.retry_where(%s::jsonb)", json.dumps(filters))
        return Retried(**row)

    def purge(self, **filters: Any) -> Purged:
        (row,) = self._rows("select * from dispatcher.purge(%s::jsonb)", json.dumps(filters))
        return Purged(**row)

    def add_schedule(self, name: str, cron: str, type: str, payload: Any, **options: Any) -> None:
        query = "select dispatcher.add_schedule(%s, %s, %s, %s::jsonb, %s::jsonb)"
        self._value(query, name, cron, type, json.dumps(payload), as_json(options))

    def pause_schedule(self, name: str) -> bool:
        return bool(self._value("select dispatcher.pause_schedule(%s)", name))

    def resume_schedule(self, name: str) -> bool:
        return bool(self._value("select dispatcher.resume_schedule(%s)", name))

    def trigger_schedule(self, name: str) -> int:
        return int(self._value("select dispatcher.trigger_schedule(%s)", name))

    def remove_schedule(self, name: str) -> None:
        self._value("select dispatcher.remove_schedule(%s)", name)


class Command:
    """The command, in this process."""

    def __init__(self, dsn: str) -> None:
        self._runner = CliRunner(env={"DISPATCHER_DSN": dsn, "DATABASE_URL": None, "DISPATCHER_CONFIG": None})

    def __call__(self, *args: str, stdin: str | bytes | None = None) -> Any:
        result = self._runner.invoke(main, ["--json", *args], prog_name="dispatcher", input=stdin)
        if result.exit_code == 0:
            return json.loads(result.stdout)
        assert result.exit_code in (1, 2), result.output
        assert result.stderr.startswith("Error: "), result.stderr
        assert result.stderr.count("\n") == 1, result.stderr
        assert "unexpected" not in result.stderr, result.stderr
        assert result.stdout == ""
        raise CommandRefused(result.stderr)

    def enqueue_unique(self, type: str, payload: Any, **options: Any) -> tuple[int, bool]:
        told = self("enqueue", *_flags(options), "--", type, json.dumps(payload))
        return told["id"], told["created"]

    def enqueue_many(self, type: str, payloads: Sequence[Any], **options: Any) -> list[int]:
        ids: list[int] = self("enqueue", "--file", "-", *_flags(options), "--", type, stdin=_lines(payloads))["ids"]
        return ids

    def batch(self, type: str, payloads: Sequence[Any], callback: Callback | None = None, **options: Any) -> int:
        after = []
        if callback is not None:
            after = [f"--callback={callback.type}", f"--callback-payload={json.dumps(callback.payload)}"]
        flags = ["--file", "-", "--batch", *after, *_flags(options)]
        return int(self("enqueue", *flags, "--", type, stdin=_lines(payloads))["id"])

    def get(self, id: int) -> JobInfo:
        told = self("job", "show", str(id))
        return http_job({name: value for name, value in told.items() if name != "after"})

    def list(self, **filters: Any) -> Any:
        return [http_job(told) for told in self("job", "list", *_flags(filters))]

    def cancel(self, id: int) -> str:
        return str(self("job", "cancel", str(id))["state"])

    def retry(self, id: int) -> str:
        return str(self("job", "retry", str(id))["state"])

    def pause(self, type: str) -> bool:
        return bool(self("type", "pause", "--", type)["changed"])

    def resume(self, type: str) -> bool:
        return bool(self("type", "resume", "--", type)["changed"])

    def set_limit(self, type: str, **limits: Any) -> None:
        given = {name: "none" if value is None else value for name, value in limits.items()}
        self("type", "limit", *_flags(given), "--", type)

    def count_ended(self, **filters: Any) -> int:
        return int(self("job", "retry", "--dry-run", *_flags(filters))["count"])

    def retry_where(self, **filters: Any) -> Retried:
        return Retried(**self("job", "retry", "--yes", *_flags(filters)))

    def purge(self, **filters: Any) -> Purged:
        return Purged(**self("job", "purge", "--yes", *_flags(filters)))

    def add_schedule(self, name: str, cron: str, type: str, payload: Any, **options: Any) -> None:
        self("schedule", "add", *_flags(options), "--", name, cron, type, json.dumps(payload))

    def pause_schedule(self, name: str) -> bool:
        return bool(self("schedule", "pause", "--", name)["changed"])

    def resume_schedule(self, name: str) -> bool:
        return bool(self("schedule", "resume", "--", name)["changed"])

    def trigger_schedule(self, name: str) -> int:
        return int(self("schedule", "trigger", "--", name)["id"])

    def remove_schedule(self, name: str) -> None:
        self("schedule", "remove", "--", name)


def http_job(told: dict[str, Any]) -> JobInfo:
    """A job as JSON has it."""
    times = {name: told[name] and datetime.fromisoformat(told[name]) for name in told if name.endswith("_at")}
    told = (
        told
        | times
        | {"state": State(told["state"]), "timeout": timedelta(seconds=seconds("timeout", told["timeout"]))}
    )
    return JobInfo(**told)


def _lines(payloads: Sequence[Any]) -> str:
    return "".join(json.dumps(payload) + "\n" for payload in payloads)


def _flags(options: dict[str, Any]) -> list[str]:
    names = {"delay": "in", "run_at": "at"}
    flags: list[str] = []
    for name, value in options.items():
        flag = f"--{names.get(name, name.replace('_', '-'))}"
        several = value if isinstance(value, list) else [value]
        flags += [flag if one is True else f"{flag}={_option(one)}" for one in several]
    return flags
