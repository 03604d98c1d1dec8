"""A blocking face for the async client of the HTTP API, so that one test drives both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from dispatcher import http


class Blocking:
    """An AsyncClient as blocking code sees it."""

    def __init__(self, url: str, token: str, **options: Any) -> None:
        self._runner = asyncio.Runner()
        self._client = http.AsyncClient(url, token, **options)

    def __enter__(self) -> Blocking:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **options: self._runner.run(getattr(self._client, name)(*args, **options))

    def events(self, id: int) -> Iterator[Any]:
        events = self._client.events(id)
        while True:
            try:
                yield self._runner.run(_next(events))
            except StopAsyncIteration:
                return


async def _next(events: AsyncIterator[Any]) -> Any:
    return await anext(events)
