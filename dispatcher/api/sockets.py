"""Listening sockets: opened here, or by systemd before this process was there, as in sd_listen_fds(3)."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket

from dispatcher.errors import SettingsError

FIRST_FD = 3
BACKLOG = 2048

_PASSED = ("LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDS", "LISTEN_FDNAMES")
_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises SettingsError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address, family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as exc:
        # Python adds the address, which is named before.
        reason = str((exc.strerror if isinstance(exc, OSError) else None) or exc).partition(" (while ")[0]
        if isinstance(exc, OSError) and exc.errno == errno.EADDRINUSE:
            reason += "; set another port, or 0 for any free one"
        raise SettingsError(f"cannot listen on api_host {host!r}, api_port {port}: {reason}") from exc


def inherited_sockets() -> list[socket.socket]:
    """Those that systemd has opened for this process, once; none if it was started otherwise. Raises SettingsError."""
    # Taken away, as the manual advises: no child shall look for them.
    passed = {name: os.environ.pop(name, "") for name in _PASSED}
    if passed["LISTEN_PID"] != str(os.getpid()):
        return []
    count = passed["LISTEN_FDS"]
    if not (count.isascii() and count.isdigit() and len(count) < 10):
        raise SettingsError(f"LISTEN_FDS is {count!r}, not a number of sockets")
    return [_take(fd) for fd in range(FIRST_FD, FIRST_FD + int(count))]


def _take(fd: int) -> socket.socket:
    try:
        os.set_inheritable(fd, False)
        taken = socket.socket(fileno=fd)
    except OSError as exc:
        raise SettingsError(f"cannot serve on file descriptor {fd}, which LISTEN_FDS names: {exc.strerror}") from exc
    is_stream = taken.family in _FAMILIES and taken.type == socket.SOCK_STREAM
    # systemd passes connections instead with Accept=yes.
    if not is_stream or not taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        taken.close()
        raise SettingsError(
            f"file descriptor {fd}, which LISTEN_FDS names, is no listening socket for TCP or unix streams"
        )
    return taken


def address_of(listening: socket.socket) -> str:
    """Where it listens, for people."""
    address = listening.getsockname()
    if isinstance(address, bytes):  # of Linux's abstract namespace
        return "@" + address[1:].decode(errors="replace")
    if isinstance(address, str):
        return address
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_local(listening: socket.socket) -> bool:
    """Whether only this host can connect."""
    if listening.family == socket.AF_UNIX:
        return True
    host = listening.getsockname()[0].partition("%")[0]
    return ipaddress.ip_address(host).is_loopback
