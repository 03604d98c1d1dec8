"""Operations: what a client asks of the database, written once, driven by blocking or by async code.

A generator yields a Query and is sent its rows, or a Pause and is sent none; errors are thrown into it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import psycopg
from psycopg.rows import TupleRow, tuple_row

from dispatcher.db import first_line
from dispatcher.errors import (
    BY_SQLSTATE,
    GRANT_HINT,
    DatabaseUnavailable,
    DispatcherError,
    InvalidOption,
    InvalidPayload,
    SchemaError,
    UnsupportedServer,
)
from dispatcher.sql import statement

T = TypeVar("T")
Rows: TypeAlias = list[TupleRow]


@dataclass(frozen=True, slots=True)
class Query:
    """One statement of sql/queries. One that only `reads` may be sent again on another connection; one that is sent
    `often` is prepared where the connection is ours and allows it."""

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    reads: bool = False
    often: bool = False


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing to do for so many seconds."""

    seconds: float


Operation: TypeAlias = Generator[Query | Pause, Rows, T]


def ask(conn: psycopg.Connection[Any], query: Query, *, prepare: bool | None = None) -> Rows:
    """Sends one statement; raises psycopg's errors. `prepare` as psycopg has it: by default as the connection does."""
    # A cursor of our own, and binary results: the connection may be the caller's, with other row and cursor
    # factories, another DateStyle or another IntervalStyle.
    cursor = psycopg.Cursor(conn, row_factory=tuple_row)
    cursor.execute(statement(query.name), query.params, binary=True, prepare=prepare)
    return cursor.fetchall()


async def ask_async(conn: psycopg.AsyncConnection[Any], query: Query, *, prepare: bool | None = None) -> Rows:
    """The same for an async connection."""
    cursor = psycopg.AsyncCursor(conn, row_factory=tuple_row)
    await cursor.execute(statement(query.name), query.params, binary=True, prepare=prepare)
    return await cursor.fetchall()


def perform(conn: psycopg.Connection[Any], operation: Operation[T], *, atomic: bool = False) -> T:
    """Runs an operation without pauses on this very connection, inside its transaction if it is in one.

    Commits nothing that it did not begin: `atomic` opens a transaction only where the connection is in
    autocommit and idle.
    """
    if not isinstance(conn, psycopg.Connection):
        raise InvalidOption(f"conn must be a psycopg.Connection, not {_name(conn)}")
    with conn.transaction() if atomic and _opens_none(conn) else nullcontext():
        try:
            query = next(operation)
            while True:
                try:
                    rows = ask(conn, _query(query))
                except (psycopg.Error, UnicodeError) as exc:
                    query = operation.throw(explain(exc) or exc)
                else:
                    query = operation.send(rows)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]


async def perform_async(conn: psycopg.AsyncConnection[Any], operation: Operation[T], *, atomic: bool = False) -> T:
    """The same for an async connection."""
    if not isinstance(conn, psycopg.AsyncConnection):
        raise InvalidOption(f"conn must be a psycopg.AsyncConnection, not {_name(conn)}")
    async with conn.transaction() if atomic and _opens_none(conn) else nullcontext():
        try:
            query = next(operation)
            while True:
                try:
                    rows = await ask_async(conn, _query(query))
                except (psycopg.Error, UnicodeError) as exc:
                    query = operation.throw(explain(exc) or exc)
                else:
                    query = operation.send(rows)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]


async def drive(operation: Operation[T], ask_one: Callable[[Query], Awaitable[Rows]]) -> T:
    """Runs an operation, whose statements stand each for itself, by `ask_one`, and waits while it pauses."""
    try:
        step = next(operation)
        while True:
            match step:
                case Pause(seconds=seconds):
                    await asyncio.sleep(seconds)
                    step = operation.send([])
                case Query():
                    try:
                        rows = await ask_one(step)
                    except (psycopg.Error, UnicodeError) as exc:
                        step = operation.throw(failure(exc))
                    else:
                        step = operation.send(rows)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


def explain(exc: BaseException) -> DispatcherError | None:
    """The error of ours that says in one line what went wrong; None where the caller knows better than we."""
    if isinstance(exc, UnicodeEncodeError) and exc.reason.startswith("surrogates"):
        return InvalidOption("a text has half of a surrogate pair, which is no Unicode text")
    if isinstance(exc, UnicodeError):
        return InvalidOption("the connection's client_encoding cannot carry this text: use UTF8")
    if not isinstance(exc, psycopg.Error):
        return None
    state, line = exc.sqlstate or "", exc.diag.message_primary or first_line(exc)
    if kind := BY_SQLSTATE.get(state):
        return kind(line)
    match state:
        case "42P01" | "3F000" | "42883":  # no such table, schema or function
            return SchemaError(f"the database lacks the dispatcher's schema ({line}): run `dispatcher migrate` first")
        case "42501":
            return SchemaError(f"this role lacks a right on the dispatcher schema ({line}): {GRANT_HINT}")
        case "25006":
            return UnsupportedServer(
                "the server takes no writes: it is a standby, so give the primary's address, "
                "or default_transaction_read_only is on"
            )
    if isinstance(exc, psycopg.DataError):
        return InvalidPayload(
            "PostgreSQL cannot store this: " + ": ".join(filter(None, (line, exc.diag.message_detail)))
        )
    if state[:2] == "53" and state != "53300":
        return DatabaseUnavailable(f"PostgreSQL has run out of something, try again later: {line}")
    if isinstance(exc, psycopg.OperationalError) and (not state or state[:2] in ("08", "53") or state[:3] == "57P"):
        return DatabaseUnavailable(f"PostgreSQL ended the session: {line}")
    return None


def failure(exc: psycopg.Error | UnicodeError) -> DispatcherError:
    """As explain, for our own connection, where nobody knows better."""
    line = (exc.diag.message_primary if isinstance(exc, psycopg.Error) else None) or first_line(exc)
    return explain(exc) or DatabaseUnavailable(f"PostgreSQL could not do it: {line}")


def _opens_none(conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    return conn.autocommit and conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


def _query(step: Query | Pause) -> Query:
    assert isinstance(step, Query)  # an operation that pauses is not for a caller's transaction
    return step


def _name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
