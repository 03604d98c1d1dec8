"""The proxy's own promises, against an echo server."""

import socket
import threading
from collections.abc import Iterator

import pytest

from tests.proxy import TcpProxy

# Bytes that flow take less than a millisecond; to see that none do, we have to wait this long.
SILENCE_S = 0.1


def echo(listener: socket.socket) -> None:
    def serve(peer: socket.socket) -> None:
        with peer:
            try:
                while data := peer.recv(4096):
                    peer.sendall(data)
            except OSError:
                pass

    while True:
        try:
            peer, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=serve, args=(peer,), daemon=True).start()


@pytest.fixture
def proxy() -> Iterator[TcpProxy]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=echo, args=(listener,), daemon=True).start()
        with TcpProxy(*listener.getsockname()) as proxy:
            yield proxy
        listener.shutdown(socket.SHUT_RDWR)


def connect(proxy: TcpProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=5)


def assert_echo(client: socket.socket, data: bytes = b"hello") -> None:
    client.settimeout(5)
    client.sendall(data)
    assert client.recv(4096) == data


def assert_silent(client: socket.socket) -> None:
    client.settimeout(SILENCE_S)
    with pytest.raises(TimeoutError):
        client.recv(4096)


def test_bytes_pass(proxy: TcpProxy) -> None:
    with connect(proxy) as one, connect(proxy) as two:
        assert_echo(one)
        assert_echo(two)


def test_pause_holds_bytes_back_and_restore_delivers_them(proxy: TcpProxy) -> None:
    with connect(proxy) as client:
        assert_echo(client)
        proxy.pause()
        client.sendall(b"late")
        assert_silent(client)
        proxy.restore()
        client.settimeout(5)
        assert client.recv(4096) == b"late"


@pytest.mark.parametrize("to_server", [True, False])
def test_pause_of_one_direction(proxy: TcpProxy, to_server: bool) -> None:
    with connect(proxy) as client:
        assert_echo(client)
        proxy.pause(to_server=to_server, to_client=not to_server)
        client.sendall(b"late")
        assert_silent(client)
        proxy.restore()
        client.settimeout(5)
        assert client.recv(4096) == b"late"


def test_pause_accepts_new_connections_without_answering(proxy: TcpProxy) -> None:
    proxy.pause()
    with connect(proxy) as client:
        client.sendall(b"late")
        assert_silent(client)
        proxy.restore()
        client.settimeout(5)
        assert client.recv(4096) == b"late"


def test_cut_closes_and_refuses_until_restored(proxy: TcpProxy) -> None:
    with connect(proxy) as client:
        assert_echo(client)
        proxy.cut()
        assert client.recv(4096) == b""
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        proxy.restore()
    with connect(proxy) as client:
        assert_echo(client)


def test_drop_closes_but_takes_new_connections(proxy: TcpProxy) -> None:
    with connect(proxy) as client:
        assert_echo(client)
        proxy.drop()
        assert client.recv(4096) == b""
    with connect(proxy) as client:
        assert_echo(client)


def test_cut_of_a_paused_proxy_wakes_both_sides(proxy: TcpProxy) -> None:
    with connect(proxy) as client:
        assert_echo(client)
        proxy.pause()
        client.sendall(b"lost")
        proxy.cut()
        client.settimeout(5)
        assert client.recv(4096) == b""
        proxy.restore()
    with connect(proxy) as client:
        assert_echo(client)


def test_slow_delays_each_piece_of_data(proxy: TcpProxy) -> None:
    with connect(proxy) as client:
        assert_echo(client)
        proxy.slow(SILENCE_S)
        client.sendall(b"late")
        assert_silent(client)
        client.settimeout(5)
        assert client.recv(4096) == b"late"
        proxy.restore()
        assert_echo(client)


def test_a_stranded_client_sees_nothing_of_it_and_new_connections_work() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, TcpProxy(*listener.getsockname()) as proxy:
        with connect(proxy) as client:
            client.sendall(b"hello")
            server, _ = listener.accept()
            server.settimeout(5)
            with server:
                assert server.recv(4096) == b"hello"
                proxy.strand()
                assert server.recv(4096) == b"", "its side was closed"
                client.sendall(b"nobody reads this")
                assert_silent(client)
                proxy.restore()
                assert_silent(client)
        with connect(proxy) as client:
            client.sendall(b"hello")
            server, _ = listener.accept()
            with server:
                assert server.recv(4096) == b"hello"
