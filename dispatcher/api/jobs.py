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
        self._own_reads: Groups[tuple[int, str], Document | None] = Groups(self._read_own, size=GROUP, at_once=READS)
        self._writes = Groups(self._write, size=GROUP, at_once=WRITES, alone=(EnqueueError, self.enqueue_alone))

    async def get(self, id: int, tenant: str | None) -> Document | None:
        """The job as it is now, for its own tenant, or of any; None where there is none. Raises DatabaseUnavailable."""
        if tenant is None:
            return await self._reads.ask(id)
        found = await self._own_reads.ask((id, tenant))
        return None if found is None or found.tenant != tenant else found

    async def enqueue(self, request: EnqueueRequest) -> EnqueueAnswer:
        """Enqueues a job without a unique key (two groups could wait for each other's keys). Raises EnqueueError."""
        return await self._writes.ask(request)

    async def enqueue_alone(self, request: EnqueueRequest) -> EnqueueAnswer:
        """Enqueues any job, in a transaction of its own."""
        [answer] = await self._write([request])
        return answer

    async def _read(self, ids: Sequence[int]) -> list[Document | None]:
        found = {each.id: each for each in await self._db.run(get_documents(list(set(ids))))}
        return [found.get(id) for id in ids]

    async def _read_own(self, asked: Sequence[tuple[int, str]]) -> list[Document | None]:
        ids, tenants = {id for id, _ in asked}, {tenant for _, tenant in asked}
        documents = await self._db.run(get_documents(list(ids), own=True, tenants=list(tenants)))
        found = {each.id: each for each in documents}
        return [found.get(id) for id, _ in asked]

    async def _write(self, requests: Sequence[EnqueueRequest]) -> list[EnqueueAnswer]:
        return await self._db.run(answer_enqueues(requests))
