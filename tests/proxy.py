"""A TCP proxy that breaks the network on command.

    with TcpProxy("127.0.0.1", postgres_port) as proxy:
        connect(port=proxy.port)
        proxy.pause()       # a partition: nothing flows, nothing is closed, new connections get no answer
        proxy.cut()         # all connections are closed, new ones refused
        proxy.restore()     # all works again; what was held back by a pause arrives

The proxy's own kernel goes on acknowledging what it receives, so a pause does not set off tcp_user_timeout.
"""

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self


class TcpProxy:
    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._to_server = threading.Event()
        self._to_client = threading.Event()
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._listener = self._listen(0)
        self.port: int = self._listener.getsockname()[1]
        self.restore()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()
        self._to_server.set()  # let the threads of a paused proxy end
        self._to_client.set()

    def pause(self, *, to_server: bool = True, to_client: bool = True) -> None:
        """Hold back all bytes in one direction or both. Neither side sees the other close meanwhile."""
        if to_server:
            self._to_server.clear()
        if to_client:
            self._to_client.clear()

    def cut(self) -> None:
        """Close all connections and refuse new ones until `restore`."""
        self._close(self._listener)
        self.drop()

    def drop(self) -> None:
        """Close all connections; new ones work at once."""
        with self._lock:
            doomed, self._sockets = self._sockets, []
        for each in doomed:
            self._close(each)

    def aim(self, port: int) -> None:
        """Leads to another server of the same host from now on; connections to the old one are closed."""
        self._target = (self._target[0], port)
        self.drop()

    def restore(self) -> None:
        """Undo `pause` and `cut`."""
        if self._listener.fileno() == -1:
            self._listener = self._listen(self.port)
        self._to_server.set()
        self._to_client.set()

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # cut() closed it
                return
            threading.Thread(target=self._connect, args=(client, listener), daemon=True).start()

    def _connect(self, client: socket.socket, listener: socket.socket) -> None:
        with self._lock:
            refused = listener.fileno() == -1  # accepted in the very instant of a cut: nobody would close it any more
            if not refused:
                self._sockets.append(client)
        if refused:
            self._close(client)
            return
        self._to_server.wait()  # paused: accepted, but nobody answers
        try:
            server = socket.create_connection(self._target)
        except OSError:
            self._close(client)
            return
        with self._lock:
            self._sockets.append(server)
            dropped = client not in self._sockets
        if dropped:
            self._close(server)
        threading.Thread(target=self._pump, args=(client, server, self._to_server), daemon=True).start()
        threading.Thread(target=self._pump, args=(server, client, self._to_client), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, gate: threading.Event) -> None:
        with contextlib.suppress(OSError):  # drop() closed one of them
            while data := source.recv(65536):
                gate.wait()
                sink.sendall(data)
        gate.wait()  # the end of the stream is held back too: a partition hides it
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def _close(self, doomed: socket.socket) -> None:
        with contextlib.suppress(OSError):
            doomed.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in it, as close alone does not
        doomed.close()
