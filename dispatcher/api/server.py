"""Serves the application: sockets, signals, systemd."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from dispatcher import sdnotify
from dispatcher.api.app import Bounds, create_app
from dispatcher.api.protocol import BoundedProtocol
from dispatcher.api.sockets import BACKLOG, address_of, inherited_sockets, is_local, listen
from dispatcher.settings import Settings

CONNECTIONS = 8
KEEP_ALIVE_S = 75
HURRIED = 1  # the exit status

GC_OBJECTS = 50_000  # a full collection took 50 ms, and came every few thousand requests

log = logging.getLogger("dispatcher.api")


def serve(settings: Settings) -> None:
    """Serves until SIGTERM or Ctrl-C; then finishes what is in flight, within shutdown_grace. Raises SettingsError.

    Told twice, it ends the process at once.
    """
    app = make_app(settings)
    app.openapi()  # all that lives as long as the process is made by now
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_OBJECTS, 10, 10)
    sockets = inherited_sockets() or [listen(settings.api_host, settings.api_port)]
    server = make_server(app, sockets, grace_s=settings.shutdown_grace.total_seconds())
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(server.serve(sockets))
        if server.force_exit:
            log.warning("ends at once: whoever waits for an answer gets none")
            os._exit(HURRIED)  # what is left could only be canceled, which asks the database and waits for it


def make_app(settings: Settings) -> FastAPI:
    """The application as the settings want it."""
    bounds = Bounds(
        max_payload_bytes=settings.max_payload_bytes,
        max_body_bytes=settings.api_max_body_bytes,
        max_pending=settings.max_pending,
        connections=CONNECTIONS,
    )
    return create_app(settings.dsn.get_secret_value(), bounds)


def make_server(app: FastAPI, sockets: list[socket.socket], *, grace_s: float) -> Server:
    """A server for these listening sockets, to be run by `serve`; what is in flight at the end has `grace_s`."""
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        loop="uvloop",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,  # whoever wants one has it from the proxy in front
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(grace_s)),
    )
    return Server(config, app, sockets)


class Server(uvicorn.Server):
    """uvicorn's, except that a signal ends streams and long polls first, and is not raised again at the end."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, sockets: list[socket.socket]) -> None:
        super().__init__(config)
        self._app = app
        self._sockets = sockets

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; as long as the event loop turns, also while it stops, systemd's watchdog hears of it."""
        feeding = asyncio.create_task(_feed_watchdog(), name="watchdog")
        try:
            await super().serve(sockets)
        finally:
            feeding.cancel()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; then tells systemd and the log."""
        await super().startup(sockets)
        if self.should_exit:
            return
        addresses = [address_of(one) for one in self._sockets]
        sdnotify.ready(f"serves on {', '.join(addresses)}")
        for one, address in zip(self._sockets, addresses, strict=True):
            log.info("serves", extra={"address": address})
            if not is_local(one):
                log.warning(
                    "listens beyond this host without TLS: let a proxy in front do TLS, or tokens are read on the way",
                    extra={"address": address},
                )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Without raising them again at the end, as uvicorn would."""
        loop = asyncio.get_running_loop()
        is_main = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGTERM, signal.SIGINT) if is_main else ()
        for number in numbers:
            loop.add_signal_handler(number, self._told, number)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def _told(self, number: signal.Signals) -> None:
        log.info("told to stop", extra={"signal": number.name})
        self.force_exit = self.should_exit  # told twice: at once
        self.stop()

    def stop(self) -> None:
        """Takes no more connections, ends streams and long polls, finishes the rest. In the server's own thread."""
        sdnotify.stopping("finishes what is in flight")
        self.should_exit = True
        if (api := getattr(self._app.state, "api", None)) is not None:
            api.hub.stop()


class ServerThread:
    """A server in a thread of this process, for `dispatcher dev` and for tests."""

    def __init__(self, app: FastAPI, listening: socket.socket, *, grace_s: float = 5.0) -> None:
        self._server = make_server(app, [listening], grace_s=grace_s)
        self._sockets = [listening]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, name="api", daemon=True)
        self._thread.start()
        self._begun.wait()

    def stop(self) -> None:
        """As SIGTERM does. Any thread."""
        if self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._server.stop)

    def join(self, timeout_s: float) -> bool:
        """True once it has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            self._begun.set()
            await self._server.serve(self._sockets)

        with asyncio.Runner(loop_factory=self._server.config.get_loop_factory()) as runner:
            runner.run(serve())


async def _feed_watchdog() -> None:
    if (interval_s := sdnotify.watchdog_interval_s()) is None:
        return
    while True:
        sdnotify.watchdog()
        await asyncio.sleep(interval_s / 4)
