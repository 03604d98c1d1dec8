"""Tells systemd how this process is, as in sd_notify(3) and sd_watchdog_enabled(3); else it does nothing."""

from __future__ import annotations

import os
import socket
import time

_PATIENCE_S = 1.0  # process 1 may be slow to read; the caller must go on with its heartbeats


def notify(*lines: str) -> bool:
    """Sends lines such as "READY=1" in one datagram; True if systemd has got it. Never raises."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")) or not lines:
        return False
    address = "\0" + path[1:] if path.startswith("@") else path
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(_PATIENCE_S)
            sender.connect(address)
            sender.sendall("\n".join(lines).encode("utf-8", "replace"))
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return False
    return True


def watchdog_interval_s() -> float | None:
    """Seconds without a ping after which systemd acts (so ping at half of it); None: there is no watchdog."""
    try:
        microseconds = int(os.environ.get("WATCHDOG_USEC", ""))
        pid = int(os.environ.get("WATCHDOG_PID") or os.getpid())
    except ValueError:
        return None
    return microseconds / 1e6 if microseconds > 0 and pid == os.getpid() else None


def ready(status: str | None = None) -> bool:
    """Start-up, or a reload, is over."""
    return notify("READY=1", *_status(status))


def status(text: str) -> bool:
    """One line for `systemctl status`."""
    return notify(*_status(text))


def reloading() -> bool:
    """A reload begins; ready() ends it."""
    # Type=notify-reload accepts only a time stamp taken after its signal was sent.
    return notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping(status: str | None = None) -> bool:
    """The end begins."""
    return notify("STOPPING=1", *_status(status))


def watchdog() -> bool:
    """Progress was made."""
    return notify("WATCHDOG=1")


def _status(text: str | None) -> tuple[str, ...]:
    # A line break would start another assignment.
    return () if text is None else ("STATUS=" + " ".join(text.split()),)
