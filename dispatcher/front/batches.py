"""Batches, and jobs in bulk that have unique keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Unpack

import psycopg

from dispatcher.batch import BatchInfo, Callback
from dispatcher.front.base import AsyncFront, Front
from dispatcher.job import JobInfo
from dispatcher.options import Options

Lines = Iterator[list[tuple[int, str]]]


class Batches(Front):
    """For blocking code."""

    def batch(
        self,
        type: str,
        payloads: Iterable[Any],
        *,
        callback: str | Callback | None = None,
        conn: psycopg.Connection[Any] | None = None,
        **options: Unpack[Options],
    ) -> int:
        """Enqueues one job a payload as the children of a new batch, all or none; returns the batch's id.

        The batch is a job itself: it is running as long as a child is open, and ends succeeded, partial, failed or
        canceled, with the counts as its result. wait, cancel and retry work on it. `callback`: a type, or a Callback:
        a job that runs once the batch has ended. The options are the children's; more children may join with the
        option `parent` while it is open. Raises as enqueue_many, and InvalidOption for a batch of none.
        """
        return self._do(self._operations.batch(type, payloads, callback, options), conn, atomic=True)

    def batch_lines(
        self, type: str, chunks: Lines, *, callback: str | Callback | None = None, **options: Unpack[Options]
    ) -> tuple[int, int]:
        """The same for lines of NDJSON, as a stream: chunks of (line number, text); returns (id, children)."""
        return self._do(self._operations.batch_lines(type, chunks, callback, options), atomic=True)

    def get_batch(self, id: int) -> BatchInfo:
        """The batch as it is now, with exact counts. Raises JobNotFound where there is no batch of this id."""
        return self._do(self._operations.get_batch(id))

    def predecessors(self, id: int) -> list[JobInfo]:
        """The jobs after which this one was enqueued, by id."""
        return self._do(self._operations.predecessors(id))

    def enqueue_many_unique(
        self,
        type: str,
        payloads: Iterable[Any],
        unique_keys: Sequence[str | None],
        *,
        conn: psycopg.Connection[Any] | None = None,
        **options: Unpack[Options],
    ) -> list[tuple[int, bool]]:
        """As enqueue_many, with a unique key (or None) for each payload: (id, whether it is a new job) in their order.

        Where an unfinished job of that type has the key, its id is answered and nothing is enqueued for that payload.
        """
        return self._do(self._operations.enqueue_many_unique(type, payloads, unique_keys, options), conn, atomic=True)

    def enqueue_unique_lines(
        self, type: str, chunks: Lines, field: str, **options: Unpack[Options]
    ) -> list[tuple[int, bool]]:
        """The same for lines of NDJSON, whose field of this name is the key; they are all held in memory."""
        return self._do(self._operations.enqueue_unique_lines(type, chunks, field, options), atomic=True)


class AsyncBatches(AsyncFront):
    """For async code."""

    async def batch(
        self,
        type: str,
        payloads: Iterable[Any],
        *,
        callback: str | Callback | None = None,
        conn: psycopg.AsyncConnection[Any] | None = None,
        **options: Unpack[Options],
    ) -> int:
        """As Client.batch."""
        return await self._do(self._operations.batch(type, payloads, callback, options), conn, atomic=True)

    async def batch_lines(
        self, type: str, chunks: Lines, *, callback: str | Callback | None = None, **options: Unpack[Options]
    ) -> tuple[int, int]:
        """As Client.batch_lines."""
        return await self._do(self._operations.batch_lines(type, chunks, callback, options), atomic=True)

    async def get_batch(self, id: int) -> BatchInfo:
        """As Client.get_batch."""
        return await self._do(self._operations.get_batch(id))

    async def predecessors(self, id: int) -> list[JobInfo]:
        """As Client.predecessors."""
        return await self._do(self._operations.predecessors(id))

    async def enqueue_many_unique(
        self,
        type: str,
        payloads: Iterable[Any],
        unique_keys: Sequence[str | None],
        *,
        conn: psycopg.AsyncConnection[Any] | None = None,
        **options: Unpack[Options],
    ) -> list[tuple[int, bool]]:
        """As Client.enqueue_many_unique."""
        operation = self._operations.enqueue_many_unique(type, payloads, unique_keys, options)
        return await self._do(operation, conn, atomic=True)

    async def enqueue_unique_lines(
        self, type: str, chunks: Lines, field: str, **options: Unpack[Options]
    ) -> list[tuple[int, bool]]:
        """As Client.enqueue_unique_lines."""
        return await self._do(self._operations.enqueue_unique_lines(type, chunks, field, options), atomic=True)
