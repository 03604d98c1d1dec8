"""The API's way to PostgreSQL: a pool, and a pulse that knows at once when the database is away.

A pool alone would let requests wait for a database that does not answer. The pulse has a connection of its own and
asks each PULSE_EVERY_S; without an answer all connections are cut, so that what waits fails now, and whatever comes is
refused at once until the database answers again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from typing import TypeVar

import psycopg
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from dispatcher import connecting
from dispatcher.db import SessionLimits, cut, explained, first_line, pinned
from dispatcher.errors import DatabaseUnavailable, DispatcherError
from dispatcher.queries.operation import Operation, Query, Rows, ask_async, drive, failure, perform_async

T = TypeVar("T")
Connection = psycopg.AsyncConnection[TupleRow]

PULSE_EVERY_S = 0.25
PULSE_WITHIN_S = 0.6  # a database that needs longer for nothing is away; with the pause before, known within a second
WAIT_S = 0.7  # for a connection of the pool, before the pulse is looked at again: 503 within a second of an outage
PATIENCE_S = 5.0  # for one while the database answers
WAITING = 2_000  # requests that may wait for one; a pile of more helps nobody
LIMITS = SessionLimits(statement_s=10.0, lock_s=10.0)
AWAY = "the database does not answer; try again in a moment"
NONE_FREE = "no connection to the database is free: too many requests, or PostgreSQL takes no more of them"

log = logging.getLogger("dispatcher.api")
logging.getLogger("psycopg.pool").setLevel(logging.ERROR)  # each of its attempts would be a warning; the pulse says it


class Database:
    """Runs operations. Raises DatabaseUnavailable, within a second, while the database is away."""

    def __init__(self, dsn: str, *, connections: int) -> None:
        self._params = connecting.client_params(dsn) | {"application_name": "dispatcher api", "connect_timeout": 2}
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            kwargs=self._params,
            min_size=min(2, connections),
            max_size=connections,
            open=False,
            timeout=WAIT_S,
            max_waiting=WAITING,
            reconnect_timeout=5.0,
            configure=_configure,
            name="api",
        )
        self._busy: set[Connection] = set()
        self._pulse: asyncio.Task[None] | None = None
        self._felt = asyncio.Event()
        self.away: str | None = "not connected yet"
        """Why nothing can be asked now; None while the database answers."""

    async def open(self) -> None:
        """Begins to connect; does not wait for the database to be there."""
        await self._pool.open(wait=False)
        self._pulse = asyncio.create_task(self._keep_pulse(), name="pulse")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PULSE_WITHIN_S):
                await self._felt.wait()

    async def close(self) -> None:
        """Closes all connections."""
        if self._pulse is not None:
            self._pulse.cancel()
            await asyncio.gather(self._pulse, return_exceptions=True)
        await self._pool.close(timeout=1.0)

    async def run(self, operation: Operation[T]) -> T:
        """Runs an operation whose statements stand each for itself; no connection is held while it pauses."""
        return await drive(operation, self._ask)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """One transaction for several operations; commits at the end, rolls back where an error leaves it."""
        try:
            async with self.connection() as conn, conn.transaction():
                yield Transaction(conn)
        except (psycopg.Error, UnicodeError) as exc:
            raise failure(exc) from exc

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection of the pool; it goes back whatever happens."""
        conn = await self._get()
        self._busy.add(conn)
        try:
            yield conn
        finally:
            self._busy.discard(conn)
            await self._pool.putconn(conn)

    async def _ask(self, query: Query) -> Rows:
        for _ in range(self._pool.max_size):  # all may have been ended together, as by an administrator or a proxy
            async with self.connection() as conn:
                try:
                    return await _ask(conn, query)
                except psycopg.OperationalError:
                    if not (conn.broken and query.reads and self.away is None):
                        raise
        async with self.connection() as conn:
            return await _ask(conn, query)

    async def _get(self) -> Connection:
        """Waits longer than WAIT_S only while the database answers: slow are then statements, or this process."""
        patience = time.monotonic() + PATIENCE_S
        while self.away is None:
            try:
                conn = await self._pool.getconn()
                if connecting.usable(conn.pgconn):
                    return conn
                await self._pool.putconn(conn)  # the server has closed it meanwhile: the pool makes another one
            except PoolTimeout as exc:
                if time.monotonic() >= patience and self.away is None:
                    raise DatabaseUnavailable(NONE_FREE) from exc
            except TooManyRequests as exc:
                raise DatabaseUnavailable(NONE_FREE) from exc
            except PoolClosed as exc:
                raise DatabaseUnavailable(AWAY) from exc
        raise DatabaseUnavailable(AWAY)

    async def session(self, name: str) -> Connection:
        """A connection beside the pool, for as long as the caller likes; raises DatabaseUnavailable."""
        with explained():
            return await psycopg.AsyncConnection.connect(**{**self._params, "application_name": f"dispatcher {name}"})

    async def _keep_pulse(self) -> None:
        conn: Connection | None = None
        try:
            while True:
                try:
                    conn = await self._beat(conn)
                except (psycopg.Error, DispatcherError, OSError) as exc:
                    self._note(first_line(exc))
                    await end(conn)
                    conn = None
                else:
                    if self.away is not None and self._felt.is_set():
                        await self._pool.drain()  # connections from before may be dead without a sign of it
                    self._note(None)
                await asyncio.sleep(PULSE_EVERY_S)
        finally:
            await end(conn)

    async def _beat(self, conn: Connection | None) -> Connection:
        """Asks for nothing; raises where no answer comes in time."""
        if conn is not None:
            try:
                await self._feel(conn)
            except psycopg.Error:  # nothing is known yet: this session may have been ended alone
                await end(conn)
            else:
                return conn
        async with asyncio.timeout(PULSE_WITHIN_S):
            conn = await self.session("api pulse")
        try:
            await self._feel(conn)
        except BaseException:
            await end(conn)
            raise
        return conn

    async def _feel(self, conn: Connection) -> None:
        # Not canceled when late: psycopg would ask the silent server to cancel, and wait for it.
        asking = asyncio.create_task(ask_async(conn, connecting.BACKEND))
        try:
            await asyncio.wait([asking], timeout=PULSE_WITHIN_S)
        finally:
            if late := not asking.done():
                cut(conn)
            # Also where the pulse itself is stopped: an error that nobody hears would be a traceback in the log, and
            # who closes the connection must not do so under a question.
            await asyncio.gather(asking, return_exceptions=True)
        if late:
            raise DatabaseUnavailable("no answer in time")
        await asking

    def _note(self, away: str | None) -> None:
        if away is not None:
            if self.away is None or not self._felt.is_set():
                log.warning("the database is away: %s", away)
            for conn in list(self._busy):
                cut(conn)
        elif self.away is not None:
            log.info("the database answers")
        self.away = away
        self._felt.set()


class Transaction:
    """Operations in one transaction."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    async def run(self, operation: Operation[T]) -> T:
        """Runs one without pauses."""
        return await perform_async(self._conn, operation)


async def end(conn: Connection | None) -> None:
    """Ends a connection without a farewell that could wait."""
    if conn is not None:
        cut(conn)
        await conn.close()


async def _configure(conn: Connection) -> None:
    await conn.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
    if connecting.is_direct(conn, await ask_async(conn, connecting.BACKEND)):
        conn.prepare_threshold = connecting.WHEN_ASKED
        await ask_async(conn, Query("pin_session", pinned(LIMITS)))


async def _ask(conn: Connection, query: Query) -> Rows:
    try:
        return await ask_async(conn, query, prepare=query.often)
    except connecting.UNPREPARED:
        if conn.prepare_threshold is None:
            raise
        conn.prepare_threshold = None
        return await ask_async(conn, query)
    except connecting.UNDONE:  # as it may by the role's default isolation level, which is not ours
        async with conn.transaction():
            return await ask_async(conn, query)
