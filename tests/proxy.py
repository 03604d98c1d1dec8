"""A TCP proxy that breaks the network on command.

    with TcpProxy("127.0.0.1", postgres_port) as proxy:
        connect(port=proxy.port)
        proxy.pause()       # a partition: nothing flows, nothing is closed, new connections get no answer
        proxy.cut()         # all connections are closed, new ones refused
        proxy.slow(0.1)     # each piece of data takes so long, in each direction
        proxy.strand()      # half-open: the server sees each connection close, the client sees nothing, ever
        proxy.restore()     # all works again; what was held back by a pause arrives

The proxy's own kernel goes on acknowledging what it receives, so a pause does not set off tcp_user_timeout.
"""

import contextlib
import socket
import threading
import time
from types import TracebackType
from typing import Self

from tests.ports import free_port


class TcpProxy:
    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._to_server = threading.Event()
        self._to_client = threading.Event()
        self._delay_s = 0.0
        self._lock = threading.Lock()
        self._links: dict[socket.socket, socket.socket | None] = {}  # a client's end, and the server's once it stands
        self._stranded: set[socket.socket] = set()
        self._listener = self._listen(free_port())  # comes back to it after a cut
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
            doomed, self._links = self._links, {}
            stranded, self._stranded = self._stranded, set()
        for each in (*doomed, *doomed.values(), *stranded):
            if each is not None:
                self._close(each)

    def slow(self, delay_s: float) -> None:
        """Let each piece of data take so long, in each direction."""
        self._delay_s = delay_s

    def strand(self) -> None:
        """Close the server's end of all connections and keep the client's open, silent; new ones work at once."""
        with self._lock:
            doomed, self._links = self._links, {}
            self._stranded.update(doomed)
        for each in doomed.values():
            if each is not None:
                self._close(each)

    def aim(self, port: int) -> None:
        """Leads to another server of the same host from now on; connections to the old one are closed."""
        self._target = (self._target[0], port)
        self.drop()

    def restore(self) -> None:
        """Undo `pause`, `cut` and `slow`. A stranded connection stays as it is."""
        if self._listener.fileno() == -1:
            self._listener = self._listen(self.port)
        self._delay_s = 0.0
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
                self._links[client] = None
        if refused:
            self._close(client)
            return
        self._to_server.wait()  # paused: accepted, but nobody answers
        try:
            server = socket.create_connection(self._target)
        except OSError:
            self._close(client)
            self._forget(client)
            return
        with self._lock:
            dropped = client not in self._links
            if not dropped:
                self._links[client] = server
        if dropped:
            self._close(server)
            return
        answers = threading.Thread(target=self._pump, args=(server, client, client, self._to_client), daemon=True)
        answers.start()
        self._pump(client, server, client, self._to_server)
        answers.join()
        if self._forget(client):
            self._close(client)
            self._close(server)

    def _pump(self, source: socket.socket, sink: socket.socket, client: socket.socket, gate: threading.Event) -> None:
        with contextlib.suppress(OSError):  # drop() closed one of them
            while data := source.recv(65536):
                if self._delay_s:
                    time.sleep(self._delay_s)
                gate.wait()
                sink.sendall(data)
        gate.wait()  # the end of the stream is held back too: a partition hides it
        if client not in self._stranded:
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_WR)

    def _forget(self, client: socket.socket) -> bool:
        """Whether the connection was still one of ours, neither dropped nor stranded."""
        with self._lock:
            there = client in self._links
            self._links.pop(client, None)
        return there

    def _close(self, doomed: socket.socket) -> None:
        with contextlib.suppress(OSError):
            doomed.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in it, as close alone does not
        doomed.close()
