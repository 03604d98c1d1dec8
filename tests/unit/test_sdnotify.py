"""Notifications over real datagram sockets."""

import os
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher import sdnotify


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Stands for systemd's end of the socket."""
    if request.param == "path":
        name = address = str(tmp_path / "n")
    else:
        token = secrets.token_hex(8)
        name, address = "@dispatcher-" + token, "\0dispatcher-" + token
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address)
        receiver.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield receiver


def received(systemd: socket.socket) -> list[str]:
    return systemd.recv(65536).decode().split("\n")


def test_lines_arrive_as_one_datagram(systemd: socket.socket) -> None:
    assert sdnotify.notify("READY=1", "STATUS=stands by")
    assert received(systemd) == ["READY=1", "STATUS=stands by"]


def test_a_line_break_in_a_status_starts_no_assignment(systemd: socket.socket) -> None:
    assert sdnotify.status("failed:\nREADY=1")
    assert received(systemd) == ["STATUS=failed: READY=1"]


def test_helpers_speak_the_protocol(systemd: socket.socket) -> None:
    assert sdnotify.ready("leads")
    assert received(systemd) == ["READY=1", "STATUS=leads"]
    assert sdnotify.ready()
    assert received(systemd) == ["READY=1"]
    assert sdnotify.stopping("drains")
    assert received(systemd) == ["STOPPING=1", "STATUS=drains"]
    assert sdnotify.watchdog()
    assert received(systemd) == ["WATCHDOG=1"]
    assert sdnotify.reloading()
    first, second = received(systemd)
    assert first == "RELOADING=1"
    name, _, value = second.partition("=")
    assert name == "MONOTONIC_USEC"
    assert 0 < int(value) <= time.monotonic_ns() // 1000


@pytest.mark.parametrize("value", [None, "", "relative", "vsock:2:1", "/does/not/exist", "/nul\udc80", "@" * 200])
def test_without_systemd_nothing_happens_and_nothing_raises(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", value)
    assert sdnotify.notify("READY=1") is False


def test_a_systemd_that_does_not_read_cannot_hang_the_caller(
    systemd: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sdnotify, "_PATIENCE_S", 0.05)
    assert any(not sdnotify.watchdog() for _ in range(100_000))


def test_the_watchdog_counts_only_for_the_process_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    assert sdnotify.watchdog_interval_s() is None
    monkeypatch.setenv("WATCHDOG_USEC", "2500000")
    assert sdnotify.watchdog_interval_s() == 2.5
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert sdnotify.watchdog_interval_s() == 2.5
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert sdnotify.watchdog_interval_s() is None


@pytest.mark.parametrize("value", ["", "0", "-5", "soon"])
def test_a_senseless_watchdog_is_none(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    monkeypatch.setenv("WATCHDOG_USEC", value)
    assert sdnotify.watchdog_interval_s() is None
