"""Drives calls and streams, by blocking and by async code: connections, pauses, and what is sent again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from typing import Self, TypeVar

import httpx
import tenacity

from dispatcher.http.base import Base, answer_of, checked_stream
from dispatcher.http.delivery import Again, Delivery
from dispatcher.http.exchange import NOTHING, Answer, Call, Request
from dispatcher.http.reading import refusal
from dispatcher.queries.operation import Pause

T = TypeVar("T")


class Sender(Base):
    """The blocking one. Any number of threads may share it."""

    def __init__(
        self, url: str | None = None, token: str | None = None, *, timeout: float = 10.0, retries: int = 5
    ) -> None:
        super().__init__(url, token, timeout=timeout, retries=retries)
        self._lock = threading.Lock()
        self._opened: httpx.Client | None = None
        self._pid = os.getpid()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; another call opens some again."""
        with self._lock:
            opened, self._opened = self._opened, None
            if opened is not None and self._pid == os.getpid():
                opened.close()

    def _do(self, call: Call[T]) -> T:
        try:
            step = next(call)
            while True:
                match step:
                    case Pause(seconds=seconds):
                        time.sleep(seconds)
                        step = call.send(NOTHING)
                    case Request():
                        step = call.send(self._deliver(step))
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]

    def _deliver(self, request: Request) -> Answer:
        delivery = self._delivery(request)
        try:
            return tenacity.Retrying(**delivery.policy(self._retries))(self._send, delivery)
        except Again as exc:
            raise exc.error from exc.__cause__

    def _send(self, delivery: Delivery) -> Answer:
        session = self._session()
        try:
            response = session.send(self._built(session, delivery.request))
        except httpx.RequestError as exc:
            raise delivery.lost(exc) from exc
        return delivery.judge(answer_of(response))

    def _open(self, request: Request) -> contextlib.closing[httpx.Response]:
        """A stream that has begun well."""
        delivery = self._delivery(request)
        try:
            return contextlib.closing(tenacity.Retrying(**delivery.policy(self._retries))(self._begin, delivery))
        except Again as exc:
            raise exc.error from exc.__cause__

    def _begin(self, delivery: Delivery) -> httpx.Response:
        session = self._session()
        try:
            response = session.send(self._built(session, delivery.request), stream=True)
            if response.status_code == 200:
                return checked_stream(response)
            response.read()
        except httpx.RequestError as exc:
            raise delivery.lost(exc) from exc
        raise refusal(delivery.judge(answer_of(response)))

    def _session(self) -> httpx.Client:
        with self._lock:
            if self._pid != os.getpid():
                self._opened, self._pid = None, os.getpid()  # the parent's: a fork must not use it
            if self._opened is None:
                self._opened = httpx.Client(**self._options())
            return self._opened


class AsyncSender(Base):
    """The async one, for one event loop."""

    def __init__(
        self, url: str | None = None, token: str | None = None, *, timeout: float = 10.0, retries: int = 5
    ) -> None:
        super().__init__(url, token, timeout=timeout, retries=retries)
        self._opened: httpx.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections; another call opens some again."""
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.aclose()

    async def _do(self, call: Call[T]) -> T:
        try:
            step = next(call)
            while True:
                match step:
                    case Pause(seconds=seconds):
                        await asyncio.sleep(seconds)
                        step = call.send(NOTHING)
                    case Request():
                        step = call.send(await self._deliver(step))
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]

    async def _deliver(self, request: Request) -> Answer:
        delivery = self._delivery(request)
        try:
            return await tenacity.AsyncRetrying(**delivery.policy(self._retries))(self._send, delivery)
        except Again as exc:
            raise exc.error from exc.__cause__

    async def _send(self, delivery: Delivery) -> Answer:
        session = self._session()
        try:
            response = await session.send(self._built(session, delivery.request))
        except httpx.RequestError as exc:
            raise delivery.lost(exc) from exc
        return delivery.judge(answer_of(response))

    async def _open(self, request: Request) -> contextlib.aclosing[httpx.Response]:
        """A stream that has begun well."""
        delivery = self._delivery(request)
        try:
            retrying = tenacity.AsyncRetrying(**delivery.policy(self._retries))
            return contextlib.aclosing(await retrying(self._begin, delivery))
        except Again as exc:
            raise exc.error from exc.__cause__

    async def _begin(self, delivery: Delivery) -> httpx.Response:
        session = self._session()
        try:
            response = await session.send(self._built(session, delivery.request), stream=True)
            if response.status_code == 200:
                return checked_stream(response)
            await response.aread()
        except httpx.RequestError as exc:
            raise delivery.lost(exc) from exc
        raise refusal(delivery.judge(answer_of(response)))

    def _session(self) -> httpx.AsyncClient:
        if self._opened is None:
            self._opened = httpx.AsyncClient(**self._options())
        return self._opened
