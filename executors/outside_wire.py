"""The connection of one request: to checked addresses alone, with one deadline for all of it, and cut at once.

The name is resolved once, and the connection goes to the very address that was checked, so that a DNS server which
answers differently the second time gains nothing. TLS and the Host header still go by the name.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import ssl
import threading
import time
from contextlib import suppress
from functools import lru_cache
from ipaddress import ip_address
from queue import Empty, SimpleQueue
from typing import Any

import httpcore

from dispatcher import Fail

from .outside_rules import SETTING, Target

CONNECT_S = 10.0  # for each address, so that a dead one leaves time for the next
READ_BYTES = 65536

logging.getLogger("httpcore").setLevel(logging.INFO)  # below it there are the headers of answers, cookies too

_Found = list[tuple[int, Any]] | OSError | None


class Wire:
    """The connections that a request makes, one after the other. `cut` may come from any thread at any time."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None
        self._found: SimpleQueue[_Found] = SimpleQueue()
        self._is_cut = False

    def cut(self) -> None:
        """Ends what the request waits for: an answer of DNS, a connection, a handshake, a byte."""
        with self._lock:
            self._is_cut = True
            if self._sock is not None:
                _shut(self._sock)
        self._found.put(None)

    def check(self) -> None:
        """Raises where the request was cut: what follows a cut looks like the end of a body."""
        if self._is_cut:
            raise httpcore.ReadError("canceled")

    def left(self) -> float:
        """Seconds until the deadline; raises after it."""
        self.check()
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout("the time is over")
        return left

    def hold(self, sock: socket.socket) -> None:
        """Takes the socket that a cut has to shut."""
        with self._lock:
            self._sock = sock
        self.check()

    def close(self) -> None:
        """Closes it. Under the lock, so that a cut never meets a number that belongs to another file by now."""
        with self._lock:
            if self._sock is not None:
                self._sock.close()
            self._sock = None

    def connect(self, target: Target) -> socket.socket:
        """A connection to the first of the host's addresses that answers, once all of them are allowed."""
        found = self._resolve(target)
        problem: Exception = OSError("it has no address")
        for family, address in found:
            try:
                return self._connect(family, address)
            except OSError as exc:
                problem = exc
            self.left()
        raise httpcore.ConnectError(_reason(problem)) from problem

    def _resolve(self, target: Target) -> list[tuple[int, Any]]:
        # In a thread, since nothing ends getaddrinfo.
        threading.Thread(target=self._look_up, args=(target,), name=f"resolve {target.host}", daemon=True).start()
        try:
            found = self._found.get(timeout=self.left())
        except Empty:
            raise httpcore.ConnectTimeout("the time was over before its name was resolved") from None
        self.check()
        if not isinstance(found, list):
            raise httpcore.ConnectError(_reason(found or OSError("its name cannot be resolved")))
        for _family, address in found:
            if not target.permits(ip_address(address[0].partition("%")[0])):
                raise Fail(
                    f"{target.host} leads to an address that is not public; where that is meant, write "
                    f"internal:{target.scheme}://{target.authority} into {SETTING}"
                )
        return found

    def _look_up(self, target: Target) -> None:
        try:
            found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
            self._found.put([(family, address) for family, _type, _proto, _name, address in found])
        except (OSError, UnicodeError) as exc:
            self._found.put(exc if isinstance(exc, OSError) else OSError("its name cannot be resolved"))

    def _connect(self, family: int, address: Any) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            self.hold(sock)
            sock.setblocking(False)
            code = sock.connect_ex(address)
            self.check()  # a cut before connect_ex found nothing to shut; one from here on does
            if code == errno.EINPROGRESS:
                poll = select.poll()
                poll.register(sock, select.POLLOUT)
                if not poll.poll(1000 * min(CONNECT_S, self.left())):
                    raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
                self.check()
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            self.close()
            raise
        return sock


class Backend(httpcore.NetworkBackend):
    """How httpcore is made to connect by a Wire."""

    def __init__(self, wire: Wire, target: Target) -> None:
        self._wire = wire
        self._target = target

    def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> httpcore.NetworkStream:  # noqa: ARG002
        """Goes by the target, whatever host is said here."""
        return _Stream(self._wire, self._wire.connect(self._target))


class _Stream(httpcore.NetworkStream):
    def __init__(self, wire: Wire, sock: socket.socket) -> None:
        self._wire = wire
        self._sock = sock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - the deadline counts
        try:
            self._sock.settimeout(self._wire.left())
            data = self._sock.recv(min(max_bytes, READ_BYTES))
        except TimeoutError as exc:
            raise httpcore.ReadTimeout("the time is over") from exc
        except OSError as exc:
            raise httpcore.ReadError(_reason(exc)) from exc
        self._wire.check()
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        view = memoryview(buffer)
        try:
            while view:
                self._sock.settimeout(self._wire.left())
                view = view[self._sock.send(view) :]
        except TimeoutError as exc:
            raise httpcore.WriteTimeout("the time is over") from exc
        except OSError as exc:
            raise httpcore.WriteError(_reason(exc)) from exc

    def close(self) -> None:
        self._wire.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        try:
            self._sock.settimeout(self._wire.left())
            # The handshake is a step of its own, for a cut has to find the new socket while it goes on.
            secure = ssl_context.wrap_socket(self._sock, server_hostname=server_hostname, do_handshake_on_connect=False)
            self._wire.hold(secure)
            secure.do_handshake()
        except BaseException as exc:
            self._wire.close()
            if isinstance(exc, TimeoutError):
                raise httpcore.ConnectTimeout("the time was over before TLS was agreed on") from exc
            if isinstance(exc, OSError):
                raise httpcore.ConnectError(_reason(exc)) from exc
            raise
        return _Stream(self._wire, secure)

    def get_extra_info(self, info: str) -> Any:
        return self._sock if info == "socket" else None


def tls() -> ssl.SSLContext:
    """What checks certificates: by the system's authorities, or those of SSL_CERT_FILE and SSL_CERT_DIR."""
    return _tls(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@lru_cache(maxsize=4)  # reading a system's authorities takes milliseconds
def _tls(_file: str | None, _folder: str | None) -> ssl.SSLContext:
    return ssl.create_default_context()


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):
        # Not SSLSocket's own, which makes a plain socket of it under the hands of whoever reads.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _reason(exc: BaseException) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"its certificate does not hold: {exc.verify_message}"
    if isinstance(exc, ssl.SSLError):
        return f"TLS failed: {exc.reason or 'no reason given'}"
    return (exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)) or type(exc).__name__
