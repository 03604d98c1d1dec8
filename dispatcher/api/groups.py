"""Groups what many requests ask of the database: what comes while a statement is under way goes with the next.

Alone, a request waits for nobody; busy, the groups grow by themselves. A statement begins after all its requests came,
so that a reader is shown whatever was committed before it asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from dispatcher.errors import DatabaseUnavailable

Asked = TypeVar("Asked")
Got = TypeVar("Got")


class Groups(Generic[Asked, Got]):
    """Sends groups of at most `size`, `at_once` of them at a time. `send` answers in the order of what was asked.

    `alone` sends one by itself, where its group has failed and the error may be another's. At most `most` wait: then
    DatabaseUnavailable, since whoever waits behind so many gets no answer in time.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Asked]], Awaitable[Sequence[Got]]],
        *,
        size: int,
        at_once: int,
        most: int = 2_000,
        alone: tuple[type[Exception], Callable[[Asked], Awaitable[Got]]] | None = None,
    ) -> None:
        self._send = send
        self._size = size
        self._at_once = at_once
        self._most = most
        self._alone = alone
        self._waiting: list[tuple[Asked, asyncio.Future[Got]]] = []
        self._tasks: set[asyncio.Task[None]] = set()  # so that they are not collected
        self._serving = 0

    async def ask(self, asked: Asked) -> Got:
        """What `send` answers to this one; raises its error."""
        if len(self._waiting) >= self._most:
            raise DatabaseUnavailable("too many requests wait for the database")
        future: asyncio.Future[Got] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, future))
        if self._serving < self._at_once:
            self._serving += 1
            task = asyncio.create_task(self._serve())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await future

    async def _serve(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
                await self._answer(group)
        finally:  # in the same instant in which nobody waited: whoever asks next starts a task
            self._serving -= 1

    async def _answer(self, group: Sequence[tuple[Asked, asyncio.Future[Got]]]) -> None:
        try:
            got = await self._send([asked for asked, _ in group])
        except Exception as exc:  # noqa: BLE001 - it is raised where it was asked
            await self._fail(group, exc)
        else:
            for (_, future), one in zip(group, got, strict=True):
                if not future.done():  # its request may have been given up
                    future.set_result(one)

    async def _fail(self, group: Sequence[tuple[Asked, asyncio.Future[Got]]], exc: Exception) -> None:
        for asked, future in group:
            own = exc
            if self._alone is not None and len(group) > 1 and isinstance(exc, self._alone[0]):
                try:
                    got = await self._alone[1](asked)
                except Exception as alone:  # noqa: BLE001 - the same
                    own = alone
                else:
                    if not future.done():
                        future.set_result(got)
            if not future.done():
                future.set_exception(own)
