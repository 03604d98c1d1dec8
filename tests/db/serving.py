"""The HTTP API as tests use it: the real server on a real socket, in a thread, and callers with tokens."""

from __future__ import annotations

from typing import Self

import httpx

from dispatcher import Client
from dispatcher.api.app import Bounds, create_app
from dispatcher.api.server import ServerThread
from dispatcher.api.sockets import listen

BOUNDS = {"max_payload_bytes": 2**20, "max_body_bytes": 2**26, "max_pending": 0, "connections": 8}


class Served:
    """A server until closed. `as_` and `caller` make callers; each request's answer is an httpx.Response."""

    def __init__(self, dsn: str, **bounds: int) -> None:
        self.dsn = dsn
        self.app = create_app(dsn, Bounds(**(BOUNDS | bounds)))
        socket = listen("127.0.0.1", 0)
        self.port: int = socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._callers: list[httpx.Client] = []
        self._thread = ServerThread(self.app, socket)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends it, gracefully."""
        self._thread.stop()
        assert self._thread.join(20)
        for caller in self._callers:
            caller.close()

    def stop(self) -> None:
        """As SIGTERM does."""
        self._thread.stop()

    @property
    def subscribers(self) -> int:
        """How many wait for what becomes of a job, while the server's own thread goes on."""
        return sum(len(group) for group in list(self.app.state.api.hub._subscribers.values()))

    def token(self, *, tenant: str | None = None, role: str = "write", expires: float | None = None) -> str:
        """A new token."""
        with Client(self.dsn) as client:
            return client.create_token("test", tenant=tenant, role=role, expires=expires)[1]

    def caller(self, token: str | None = None) -> httpx.Client:
        """Requests with this token, or with none."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        caller = httpx.Client(base_url=self.url, headers=headers, timeout=30)
        self._callers.append(caller)
        return caller

    def as_(self, role: str = "write", tenant: str | None = None) -> httpx.Client:
        """Requests with a new token of this role."""
        return self.caller(self.token(tenant=tenant, role=role))
