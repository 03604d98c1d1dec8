"""The HTTP end of a replica for people and machines that look after it: metrics, health, readiness.

It must answer when the rest is in trouble, so it stands alone: threads of its own, no database, no queue. A
client that is slow to ask or to read holds one thread for at most LIFETIME_S; when too many are open, the
oldest one makes room. So neither a scrape nor the stop of the daemon ever waits for a client.
"""

from __future__ import annotations

import errno
import http
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from prometheus_client import make_wsgi_app

from dispatcher.errors import SettingsError
from dispatcher.own_file import OwnFile

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from prometheus_client import CollectorRegistry

Checks = Callable[[], dict[str, str | None]]

LIFETIME_S = 10.0  # Prometheus gives up on a scrape after 10 s by default
CONNECTIONS = 32  # a few scrapers, a load balancer, a person; each costs a thread
POLL_S = 0.2  # the longest that stop() waits for the accepting thread
INDEX = b"pg-dispatcher\n\n/metrics  for Prometheus\n/healthz  the process lives\n/readyz   it can do its work\n"

log = logging.getLogger(__name__)


class Ops:
    """Serves /metrics, /healthz, /readyz and an index on `host`:`port`; port 0 takes a free one."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry, checks: Checks) -> None:
        """`checks` names what /readyz looks at: None where it is fine, else the reason. It must not block."""
        self._host = host
        self._port = port
        self._registry = registry
        self._checks = checks
        self._server: _Server | None = None

    @property
    def port(self) -> int:
        """The port it listens on once started."""
        return self._server.server_port if self._server else self._port

    def start(self) -> None:
        """Listens from here on. Raises SettingsError where it cannot."""
        if self._server is not None:
            return
        try:
            self._server = _Server(self._host, self._port, make_wsgi_app(self._registry), self._checks)
        except (OSError, UnicodeError) as exc:  # UnicodeError: a name that is no host name
            raise SettingsError(_advice(self._host, self._port, exc)) from exc
        serve = self._server.serve_forever
        threading.Thread(target=serve, args=(POLL_S,), name="ops", daemon=True).start()

    def stop(self) -> None:
        """Closes the port and every connection, within POLL_S."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            server.hang_up(older_than_s=0.0)


def _advice(host: str, port: int, exc: Exception) -> str:
    number = exc.errno if isinstance(exc, OSError) else None
    if number == errno.EADDRINUSE:
        return f"metrics_port {port} is in use on {host or 'this host'}: set another one, or 0 for any free port"
    if number == errno.EACCES:
        return f"metrics_port {port} needs root: set one from 1024 on"
    reason = (exc.strerror if isinstance(exc, OSError) else None) or exc
    return f"cannot listen on metrics_host {host!r}, metrics_port {port}: {reason}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    _file: OwnFile | None = None

    def __init__(self, host: str, port: int, metrics: WSGIApplication, checks: Checks) -> None:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, _, _, _, address = found[0]
        self.metrics = metrics
        self.checks = checks
        self._lock = threading.Lock()
        self._open: dict[socket.socket, float] = {}  # in the order of their opening
        super().__init__((host and str(address[0]), port), _Handler)
        self._file = OwnFile(self.fileno())

    def server_bind(self) -> None:
        """HTTPServer's would ask the name service who we are, which can take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request, client_address) -> None:  # type: ignore[no-untyped-def] # private types
        with self._lock:
            crowded = len(self._open) >= CONNECTIONS
            oldest = next(iter(self._open.values()), 0.0)
        if crowded:
            self.hang_up(older_than_s=time.monotonic() - oldest)
        with self._lock:
            self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def server_close(self) -> None:
        if self._file is not None:
            self._file.forget()
        super().server_close()

    def service_actions(self) -> None:
        if self._file is not None:
            self._file.check()
        self.hang_up(older_than_s=LIFETIME_S)

    def hang_up(self, *, older_than_s: float) -> None:
        """Ends the connections of that age; their threads see it and end."""
        before = time.monotonic() - older_than_s
        with self._lock:
            old = [request for request, since in self._open.items() if since <= before]
            for request in old:
                del self._open[request]
        for request in old:
            _shut_down(request)

    def shutdown_request(self, request) -> None:  # type: ignore[no-untyped-def] # a private type
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, *_: object) -> None:
        """Called for what a handler raised: the client went away, or was hung up on."""
        log.debug("a connection ended early: %r", sys.exc_info()[1])


def _shut_down(request: socket.socket) -> None:
    try:
        request.shutdown(socket.SHUT_RDWR)
    except OSError:
        log.debug("a connection was gone already")


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = LIFETIME_S

    def do_GET(self) -> None:
        try:
            match urlsplit(self.path).path:
                case "/metrics":
                    self._metrics()
                case "/healthz":
                    self._json(200, {"status": "ok"})
                case "/readyz":
                    self._ready()
                case "/":
                    self._send(200, [("Content-Type", "text/plain; charset=utf-8")], INDEX)
                case _:
                    self._json(404, {"status": "not found"})
        except OSError:
            raise  # the client's way, not ours
        except Exception:
            # Whatever a collector or a check raises is told to who asked, and ends no more than this.
            log.exception("could not answer", extra={"path": self.path})
            self._json(500, {"status": "error"})

    do_HEAD = do_GET  # noqa: N815 # the base class looks these names up

    def refuse(self) -> None:
        self._json(405, {"status": "method not allowed"}, ("Allow", "GET, HEAD"))

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = refuse  # noqa: N815

    def _metrics(self) -> None:
        # The library's own WSGI application, for its choice of format and compression.
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/metrics",
            "QUERY_STRING": urlsplit(self.path).query,
            "HTTP_ACCEPT": self.headers.get("Accept", ""),
            "HTTP_ACCEPT_ENCODING": self.headers.get("Accept-Encoding", ""),
        }
        answer: list[tuple[str, list[tuple[str, str]]]] = []

        def start_response(status: str, headers: list[tuple[str, str]], *_: object) -> Callable[[bytes], object]:
            answer.append((status, headers))
            return lambda _: None

        body = b"".join(self.server.metrics(environ, start_response))
        status, headers = answer[-1]
        self._send(int(status.split()[0]), headers, body)

    def _ready(self) -> None:
        failing = {name: reason for name, reason in self.server.checks().items() if reason is not None}
        if failing:
            self._json(503, {"status": "unready", "failing": failing})
        else:
            self._json(200, {"status": "ready"})

    def _json(self, status: int, value: dict[str, object], *headers: tuple[str, str]) -> None:
        body = json.dumps(value, separators=(",", ":")).encode() + b"\n"
        self._send(status, [("Content-Type", "application/json"), *headers], body)

    def _send(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status, http.HTTPStatus(status).phrase)
        for name, value in [*headers, ("Content-Length", str(len(body))), ("Cache-Control", "no-store")]:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def version_string(self) -> str:
        return "pg-dispatcher"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 # the base class's name
        log.debug("request: %s", format % args)
