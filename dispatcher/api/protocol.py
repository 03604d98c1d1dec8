"""uvicorn's HTTP protocol with bounds that it lacks: of a request's head, in bytes and in time."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

HEAD_BYTES = 32 * 1024
HEAD_S = 10.0
LINGER_S = 1.0
# Before the end, as a request may be on its way: a kept connection ends when it has been idle for the first time, a
# new one, whose client has something to say, for the second. uvicorn itself waits for 0.1 s.
KEPT_S = 0.08
NEW_S = 0.5

_REFUSAL = (
    b'{"type": "about:blank", "title": "Request Header Fields Too Large", "status": 431, '
    b'"detail": "the head of the request has more than %d bytes"}' % HEAD_BYTES
)
_ANSWER = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: application/problem+json\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(_REFUSAL), _REFUSAL)
)


class BoundedProtocol(HttpToolsProtocol):
    """Refuses a head of more than HEAD_BYTES with 431, and hangs up on one that takes longer than HEAD_S.

    When the server stops, requests that are already on their way are answered, rather than hung up on.
    """

    cycle: RequestResponseCycle | None  # type: ignore[assignment] # before the first request there is none

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head: int | None = 0  # bytes of a head that is not complete; None after it
        self._loose = 0  # bytes since something came that is bounded elsewhere: a head, a body
        self._late: asyncio.TimerHandle | None = None
        self._refused = False
        self._stops = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        self._late = self.loop.call_later(HEAD_S, self._hang_up)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._late is not None:
            self._late.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return  # read, so that the answer is not lost to a reset
        if self._head is not None:
            self._head += len(data)
        self._loose += len(data)
        super().data_received(data)
        if self._head is not None and self._head > HEAD_BYTES:
            self._refuse()
        elif self._head is None and self._loose > HEAD_BYTES:  # of trailers, or of what may stand behind a chunk's size
            self._hang_up()
        elif self._late is None and self.timeout_keep_alive_task is None and self._is_idle():
            self._late = self.loop.call_later(HEAD_S, self._hang_up)  # what came is not the begin of a request

    def _is_idle(self) -> bool:
        done = self.cycle is not None and self.cycle.response_complete
        return done and not self._refused and not self.pipeline

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head is not None:  # trailers are none of the request's headers
            super().on_header(name, value)

    def on_message_begin(self) -> None:
        self._head = self._loose = 0
        if self._late is None:
            self._late = self.loop.call_later(HEAD_S, self._hang_up)
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head, self._loose = None, 0
        if self._late is not None:
            self._late.cancel()
            self._late = None
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES:
            self._refuse()
        else:
            super().on_headers_complete()
            if self._stops and self.cycle is not None:
                self.cycle.keep_alive = False  # its answer says "Connection: close"

    def on_body(self, body: bytes) -> None:
        self._loose = 0
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._refused:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._stops:
            self.loop.call_later(KEPT_S, self._leave)

    def shutdown(self) -> None:
        """The server stops."""
        self._stops = True
        if self.cycle is None:
            self.loop.call_later(NEW_S, self._leave)
        elif self.cycle.response_complete:
            self.loop.call_later(KEPT_S, self._leave)
        elif not self.cycle.response_started:
            self.cycle.keep_alive = False

    def _leave(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self._hang_up()

    def _refuse(self) -> None:
        self._refused = True
        if not self.transport.is_closing():
            self.transport.write(_ANSWER)
            self.transport.write_eof()
            self.loop.call_later(LINGER_S, self._hang_up)

    def _hang_up(self) -> None:
        self._late = None
        if not self.transport.is_closing():
            self.transport.close()
