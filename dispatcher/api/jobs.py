"""Reads and enqueues jobs for many requests at once."""

from __future__ import annotations

from collections.abc import Sequence

from dispatcher.api.database import Database
from dispatcher.api.groups import Groups
from dispatcher.errors import EnqueueError
from dispatcher.queries.serving import Document, Shown, enqueue_group, enqueue_shown, get_documents

READS = 2  # statements under way
WRITES = 2  # two commits at a time: one is written while the other is made up
GROUP = 100

Prepared = tuple[str, str, str]


class Jobs:
    """For the tasks of one event loop."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._reads = Groups(self._read, size=GROUP, at_once=READS)
        self._writes = Groups(self._write, size=GROUP, at_once=WRITES, alone=(EnqueueError, self._write_alone))

    async def get(self, id: int) -> Document | None:
        """The job as it is now; None where there is none. Raises DatabaseUnavailable."""
        return await self._reads.ask(id)

    async def enqueue(self, job: Prepared) -> Shown:
        """Enqueues a job without a unique key (two groups could wait for each other's keys). Raises EnqueueError."""
        return await self._writes.ask(job)

    async def _read(self, ids: Sequence[int]) -> list[Document | None]:
        found = {each.id: each for each in await self._db.run(get_documents(list(set(ids))))}
        return [found.get(id) for id in ids]

    async def _write(self, jobs: Sequence[Prepared]) -> list[Shown]:
        return await self._db.run(enqueue_group(jobs))

    async def _write_alone(self, job: Prepared) -> Shown:
        return await self._db.run(enqueue_shown(*job))
