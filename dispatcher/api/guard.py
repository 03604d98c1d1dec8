"""Keeps a request within its bounds before anything reads it: bytes of the body as they come, and time."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dispatcher.api.problems import problem

BODY_S = 20.0  # for the body to arrive
REQUEST_S = 30.0
DRAIN_BYTES = 16 * 1024 * 1024
DRAIN_S = 2.0
STREAM = re.compile(r"/jobs/[0-9]+/events")  # goes on
POLL = re.compile(r"/jobs/[0-9]+")  # with a query, it may wait
LONGEST_WAIT_S = 60.0

Most = Callable[[str], int]
Admit = Callable[[Scope], Awaitable[ASGIApp | None]]


class Guard:
    """`most` says how many bytes the body of a request for a path may have, `admit` what answers it before its body is
    read, if anything."""

    def __init__(self, app: ASGIApp, most: Most, admit: Admit) -> None:
        self._app = app
        self._most = most
        self._admit = admit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        if scope["method"] in ("POST", "PUT", "PATCH", "DELETE"):
            most = self._most(path)
            if _announced(scope) > most:
                await _drain(receive)
                await _too_large(most)(scope, receive, send)
                return
            if (refusal := await self._admit(scope)) is not None:
                await _drain(receive)
                await refusal(scope, receive, send)
                return
            receive = _bounded(receive, most)
        if STREAM.fullmatch(path):
            await self._app(scope, receive, send)
            return
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            waits = bool(scope["query_string"]) and POLL.fullmatch(path) is not None
            async with asyncio.timeout(REQUEST_S + (LONGEST_WAIT_S if waits else 0.0)):
                await self._app(scope, receive, watched)
        except TimeoutError:
            if begun:
                raise
            answer = problem(503, f"the request took more than {REQUEST_S:.0f} s", headers={"Retry-After": "1"})
            await answer(scope, receive, send)
        except asyncio.CancelledError:  # by the server alone, as it stops and its grace is over: the task ends here
            if not begun:
                answer = problem(503, "the server stops, before the request was done", headers={"Retry-After": "1"})
                await answer(scope, receive, send)


def _announced(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0  # the server has refused what is no number
    return 0


def _bounded(receive: Receive, most: int) -> Receive:
    read = 0

    async def bounded() -> Message:
        nonlocal read
        try:
            async with asyncio.timeout(BODY_S):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, f"the body did not arrive within {BODY_S:.0f} s") from None
        read += len(message.get("body", b""))
        if read > most:
            await _drain(receive)
            raise HTTPException(413, _words(most), {"Connection": "close"})
        return message

    return bounded


async def _drain(receive: Receive) -> None:
    """Reads on for a while: whoever is hung up on while it sends may not see the answer."""
    drained = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_S):
            while drained < DRAIN_BYTES:
                message = await receive()
                drained += len(message.get("body", b""))
                if not message.get("more_body"):
                    return


def _too_large(most: int) -> ASGIApp:
    return problem(413, _words(most), headers={"Connection": "close"})


def _words(most: int) -> str:
    return f"the body has more than {most} bytes"
