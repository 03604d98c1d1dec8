"""The HTTP API as the tests of its clients meet it: uvicorn in a thread, on a real database."""

from __future__ import annotations

import contextlib
import gc
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace

import uvicorn

from dispatcher import Client
from dispatcher.api.app import Bounds, create_app
from dispatcher.api.protocol import BoundedProtocol
from dispatcher.api.server import listen
from tests.db.running import until

BOUNDS = Bounds(max_payload_bytes=2**20, max_body_bytes=2**23, max_pending=0, connections=4)


@contextlib.contextmanager
def serving(dsn: str, *, max_pending: int = 0, port: int = 0) -> Iterator[int]:
    """A server on 127.0.0.1; its port."""
    with _serving(dsn, max_pending, port) as taken:
        yield taken
    with warnings.catch_warnings():  # the server leaves the connection of its pulse to the collector
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@contextlib.contextmanager
def _serving(dsn: str, max_pending: int, port: int) -> Iterator[int]:
    app = create_app(dsn, replace(BOUNDS, max_pending=max_pending))
    socket = listen("127.0.0.1", port)
    config = uvicorn.Config(
        app, http=BoundedProtocol, ws="none", loop="uvloop", lifespan="on", log_config=None, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([socket],), name="api")
    thread.start()
    try:
        until(lambda: server.started)
        yield socket.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def token_of(dsn: str, *, role: str = "admin", tenant: str | None = None) -> str:
    """A new token."""
    with Client(dsn) as client:
        return client.create_token("test", role=role, tenant=tenant)[1]
