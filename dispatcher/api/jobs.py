"""Reads and enqueues jobs for many requests at once."""

from __future__ import annotations

from collections.abc import Sequence

from dispatcher.api.database import Database
from dispatcher.api.groups import Groups
from dispatcher.errors import EnqueueError
from dispatcher.queries.serving import Document, EnqueueAnswer, EnqueueRequest, answer_enqueues, get_documents

READS = 2  # statements under way
WRITES = 2  # two commits at a time: one is written while the other is made up
GROUP = 100


class Jobs:
    """For the tasks of one event loop."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._reads: Groups[int, Document | None] = Groups(self._read, size=GROUP, at_once=READS)
        self._own_reads: Groups[int, Document | None] = Groups(self._read_own, size=GROUP, at_once=READS)
        self._writes = Groups(self._write, size=GROUP, at_once=WRITES, alone=(EnqueueError, self.enqueue_alone))

    async def get(self, id: int, *, own: bool) -> Document | None:
        """The job as it is now, `own`: for its own tenant; None where there is none. Raises DatabaseUnavailable."""
        return await (self._own_reads if own else self._reads).ask(id)

    async def enqueue(self, request: EnqueueRequest) -> EnqueueAnswer:
        """Enqueues a job without a unique key (two groups could wait for each other's keys). Raises EnqueueError."""
        return await self._writes.ask(request)

    async def enqueue_alone(self, request: EnqueueRequest) -> EnqueueAnswer:
        """Enqueues any job, in a transaction of its own."""
        [answer] = await self._write([request])
        return answer

    async def _read(self, ids: Sequence[int], *, own: bool = False) -> list[Document | None]:
        found = {each.id: each for each in await self._db.run(get_documents(list(set(ids)), own=own))}
        return [found.get(id) for id in ids]

    async def _read_own(self, ids: Sequence[int]) -> list[Document | None]:
        return await self._read(ids, own=True)

    async def _write(self, requests: Sequence[EnqueueRequest]) -> list[EnqueueAnswer]:
        return await self._db.run(answer_enqueues(requests))
