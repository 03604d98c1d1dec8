"""AsyncClient: the Client's methods with await; what they do is written once, in dispatcher.operations."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, Unpack, overload

import psycopg
from psycopg.rows import TupleRow

from dispatcher import connecting
from dispatcher.client import Infos, Lines
from dispatcher.db import explained
from dispatcher.executor import Registry
from dispatcher.front.batches import AsyncBatches
from dispatcher.front.control import AsyncControlFront
from dispatcher.front.ended import AsyncEndedJobs
from dispatcher.front.explain import AsyncExplainFront
from dispatcher.front.schedules import AsyncSchedulesFront
from dispatcher.front.stats import AsyncStatsFront
from dispatcher.front.tokens import AsyncTokensFront
from dispatcher.job import JobInfo
from dispatcher.operations import Operations
from dispatcher.options import Duration, Options
from dispatcher.queries import fleet
from dispatcher.queries.fleet import LeaderInfo, ReplicaInfo, TypeInfo
from dispatcher.queries.operation import (
    Operation,
    Query,
    Rows,
    ask_async,
    drive,
    failure,
    perform_async,
)
from dispatcher.store import load_result

T = TypeVar("T")
Connection = psycopg.AsyncConnection[TupleRow]
AnyConnection = psycopg.AsyncConnection[Any]


class AsyncClient(
    AsyncBatches,
    AsyncControlFront,
    AsyncEndedJobs,
    AsyncExplainFront,
    AsyncSchedulesFront,
    AsyncStatsFront,
    AsyncTokensFront,
):
    """As Client, for one event loop: its tasks may share it. `conn` is a psycopg.AsyncConnection."""

    def __init__(self, dsn: str = "", *, registry: Registry | None = None) -> None:
        self._params = connecting.client_params(dsn)
        self._operations = Operations(registry)
        self._lock = asyncio.Lock()
        self._conn: Connection | None = None
        self._pid = os.getpid()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; another call opens one again."""
        async with self._lock:
            await self._drop()

    async def enqueue(
        self, type: str, payload: Any = None, *, conn: AnyConnection | None = None, **options: Unpack[Options]
    ) -> int:
        """See Client.enqueue."""
        return (await self.enqueue_unique(type, payload, conn=conn, **options))[0]

    async def enqueue_unique(
        self, type: str, payload: Any = None, *, conn: AnyConnection | None = None, **options: Unpack[Options]
    ) -> tuple[int, bool]:
        """See Client.enqueue_unique."""
        operation = self._operations.enqueue(type, payload, options)
        return await self._do(operation, conn)

    async def enqueue_many(
        self,
        type: str,
        payloads: Iterable[Any],
        *,
        conn: AnyConnection | None = None,
        **options: Unpack[Options],
    ) -> list[int]:
        """See Client.enqueue_many."""
        operation = self._operations.enqueue_many(type, payloads, options)
        return await self._do(operation, conn, atomic=True)

    async def enqueue_lines(self, type: str, chunks: Lines, **options: Unpack[Options]) -> list[int]:
        """See Client.enqueue_lines."""
        return await self._do(self._operations.enqueue_lines(type, chunks, options), atomic=True)

    async def enqueue_text(self, type: str, text: str, **options: Unpack[Options]) -> tuple[int, bool]:
        """See Client.enqueue_text."""
        return await self._do(self._operations.enqueue_text(type, text, options))

    async def get(self, id: int) -> JobInfo:
        """See Client.get."""
        return await self._do(self._operations.get(id))

    async def result(self, id: int) -> Any:
        """See Client.result."""
        job = await self._do(self._operations.result(id))
        if job.result_url is None:
            return job.result
        return await asyncio.to_thread(load_result, job.result, job.result_url)

    @overload
    async def wait(self, id: int, timeout: Duration | None = None) -> JobInfo: ...
    @overload
    async def wait(self, id: Sequence[int], timeout: Duration | None = None) -> Infos: ...
    async def wait(
        self,
        id: int | Sequence[int],
        timeout: Duration | None = None,
    ) -> JobInfo | Infos:
        """See Client.wait."""
        ids = [id] if isinstance(id, int) else id
        ended = await self._do(self._operations.wait(ids, timeout))
        return ended[0] if isinstance(id, int) else ended

    async def cancel(self, id: int, *, conn: AnyConnection | None = None) -> str:
        """See Client.cancel."""
        operation = self._operations.cancel(id)
        return await self._do(operation, conn)

    async def retry(self, id: int, *, conn: AnyConnection | None = None) -> str:
        """See Client.retry."""
        operation = self._operations.retry(id)
        return await self._do(operation, conn)

    async def types(self) -> list[TypeInfo]:
        """See Client.types."""
        return await self._do(fleet.list_types())

    async def replicas(self) -> list[ReplicaInfo]:
        """See Client.replicas."""
        return await self._do(fleet.show_replicas())

    async def leader(self, lease: str = "default") -> LeaderInfo | None:
        """See Client.leader."""
        return await self._do(fleet.show_lease(lease))

    async def ask_to_resign(self, lease: str = "default") -> tuple[int, int] | None:
        """See Client.ask_to_resign."""
        return await self._do(fleet.ask_to_resign(lease))

    async def _do(self, operation: Operation[T], conn: AnyConnection | None = None, *, atomic: bool = False) -> T:
        if conn is not None:
            return await perform_async(conn, operation, atomic=atomic)
        return await (self._atomically(operation) if atomic else drive(operation, self._ask))

    async def _atomically(self, operation: Operation[T]) -> T:
        """Drives an operation inside one transaction."""
        try:
            async with self._lock:
                return await perform_async(await self._connection(), operation, atomic=True)
        except psycopg.Error as exc:
            raise failure(exc) from exc

    async def _ask(self, query: Query) -> Rows:
        async with self._lock:
            conn = await self._connection()
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
            except psycopg.OperationalError:
                if not conn.closed or not query.reads:
                    raise
            return await ask_async(await self._connection(), query)

    async def _connection(self) -> Connection:
        if self._pid != os.getpid():
            self._conn, self._pid = None, os.getpid()  # the parent's: a fork must not even close it
        if self._conn is not None and not connecting.usable(self._conn.pgconn):
            await self._drop()
        if self._conn is None:
            with explained():
                self._conn = await psycopg.AsyncConnection.connect(**self._params)
            await self._conn.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)  # of transactions that we begin
            if connecting.is_direct(self._conn, await ask_async(self._conn, connecting.BACKEND)):
                self._conn.prepare_threshold = connecting.WHEN_ASKED
        return self._conn

    async def _drop(self) -> None:
        if self._conn is not None and self._pid == os.getpid():
            await self._conn.close()
        self._conn = None
