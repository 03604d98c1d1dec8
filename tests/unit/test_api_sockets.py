"""Listening sockets that are passed on, and what is no such thing."""

import os
import secrets
import socket
from pathlib import Path

import pytest

from dispatcher.api import sockets
from dispatcher.errors import SettingsError


def passed(monkeypatch: pytest.MonkeyPatch, one: socket.socket | int, *, count: str = "1") -> list[socket.socket]:
    """What is taken over, if systemd passes this file descriptor to this process."""
    fd = one if isinstance(one, int) else os.dup(one.fileno())
    os.set_inheritable(fd, True)
    monkeypatch.setattr(sockets, "FIRST_FD", fd)
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", count)
    monkeypatch.setenv("LISTEN_FDNAMES", "api")
    return sockets.inherited_sockets()


def test_a_passed_socket_is_for_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        [taken] = passed(monkeypatch, one)
        with taken:
            assert taken.getsockname() == one.getsockname()
            assert not taken.get_inheritable()
    assert not [name for name in os.environ if name.startswith("LISTEN_")]
    assert sockets.inherited_sockets() == []


@pytest.mark.parametrize("pid", ["", "1", "x"])
def test_what_is_passed_to_another_process_is_left_alone(monkeypatch: pytest.MonkeyPatch, pid: str) -> None:
    monkeypatch.setenv("LISTEN_PID", pid)
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert sockets.inherited_sockets() == []


def test_none_are_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert passed(monkeypatch, os.open(os.devnull, os.O_RDONLY), count="0") == []


@pytest.mark.parametrize("count", ["", "-1", "one", "9" * 20, "²"])
def test_a_count_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, count: str) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", count)
    with pytest.raises(SettingsError, match="LISTEN_FDS"):
        sockets.inherited_sockets()


def test_a_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with Path(os.devnull).open() as file, pytest.raises(SettingsError, match="non-socket"):
        passed(monkeypatch, file.fileno())


def test_a_descriptor_that_is_not_open_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as one:
        (taken,) = passed(monkeypatch, one)
        taken.close()
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "1")
    with pytest.raises(SettingsError, match="Bad file descriptor"):
        sockets.inherited_sockets()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_socket_that_does_not_listen_is_refused(monkeypatch: pytest.MonkeyPatch, kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_INET, kind) as one, pytest.raises(SettingsError, match="no listening socket"):
        passed(monkeypatch, one)


@pytest.mark.parametrize("host", ["no host", "192.0.2.1", "300.1.1.1", "::1::", "x" * 300, "a..b", "\0"])
def test_a_host_that_is_not_here_is_refused_in_one_line(host: str) -> None:
    with pytest.raises(SettingsError, match="cannot listen on api_host") as refused:
        sockets.listen(host, 0)
    assert len(str(refused.value).splitlines()) == 1


def test_a_port_in_use_is_named_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(SettingsError) as refused:
        sockets.listen("127.0.0.1", port := other.getsockname()[1])
    line = f"cannot listen on api_host '127.0.0.1', api_port {port}: Address already in use"
    assert str(refused.value) == f"{line}; set another port, or 0 for any free one"


def test_sockets_have_names_and_say_who_can_connect(tmp_path: Path) -> None:
    token = secrets.token_hex(8)
    for family, address, name, is_local in (
        (socket.AF_INET, ("127.0.0.1", 0), "127.0.0.1:{port}", True),
        (socket.AF_INET, ("127.9.9.9", 0), "127.9.9.9:{port}", True),
        (socket.AF_INET, ("0.0.0.0", 0), "0.0.0.0:{port}", False),
        (socket.AF_INET6, ("::1", 0), "[::1]:{port}", True),
        (socket.AF_INET6, ("::", 0), "[::]:{port}", False),
        (socket.AF_UNIX, str(tmp_path / "api"), str(tmp_path / "api"), True),
        (socket.AF_UNIX, "\0" + token, "@" + token, True),
    ):
        with socket.socket(family, socket.SOCK_STREAM) as one:
            one.bind(address)
            port = "" if family == socket.AF_UNIX else one.getsockname()[1]
            assert (sockets.address_of(one), sockets.is_local(one)) == (name.format(port=port), is_local)
