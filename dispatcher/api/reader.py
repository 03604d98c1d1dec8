"""Reads jobs for many requests at once: whatever is asked for while a statement is under way goes with the next one.

Alone, a request waits for nobody; busy, the groups grow by themselves. A statement begins after all its requests came,
so that nobody is shown less than what was committed before.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict

from dispatcher.api.database import Database
from dispatcher.queries.serving import Document, get_documents

AT_ONCE = 2  # statements under way
GROUP = 100

Waiting = dict[int, list[asyncio.Future[Document | None]]]


class Reader:
    """For the tasks of one event loop."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._waiting: Waiting = defaultdict(list)
        self._tasks: set[asyncio.Task[None]] = set()

    async def get(self, id: int) -> Document | None:
        """The job as it is now; None where there is none. Raises DatabaseUnavailable."""
        future: asyncio.Future[Document | None] = asyncio.get_running_loop().create_future()
        self._waiting[id].append(future)
        if len(self._tasks) < AT_ONCE:
            task = asyncio.create_task(self._serve())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await future

    async def _serve(self) -> None:
        while self._waiting:
            group: Waiting = {id: self._waiting.pop(id) for id in list(self._waiting)[:GROUP]}
            try:
                found = {each.id: each for each in await self._db.run(get_documents(list(group)))}
            except BaseException as exc:
                _each(group, exc)
                if not isinstance(exc, Exception):
                    raise
            else:
                for id, futures in group.items():
                    for future in futures:
                        if not future.done():  # its request may have been given up
                            future.set_result(found.get(id))


def _each(group: Waiting, exc: BaseException) -> None:
    for futures in group.values():
        for future in futures:
            if not future.done():
                future.set_exception(exc) if isinstance(exc, Exception) else future.cancel()
