"""The daemon's side of a worker process: it starts one, hands it jobs one by one, and kills it.

The process is a supervised program (dispatcher/supervised.py): it ends, with all that its job has started, when this
process dies in whatever way, and the proof of this process's death waits for it. Each has a socket of its own: workers
that share a pipe share its lock, and one that dies with the lock in hand stops all the others.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from dispatcher.job import CancelReason
from dispatcher.outcome import Outcome
from dispatcher.pools.messages import Attempt, CancelOrder, Done, FromWorker, Order, Setup, Started, ToWorker
from dispatcher.supervised import Supervised, SupervisorDied, order_for

_BOOT = """\
import sys
from multiprocessing.connection import Connection
conn = Connection(int(sys.argv[1]))
sys.path[:] = conn.recv()
from dispatcher.pools.worker_main import Worker
Worker(conn).run()
"""


class WorkerDied(Exception):
    """The process ended under the job; says how."""


class NeverStarted(Exception):
    """The process was dead before it took the job."""


class WorkerProcess:
    """One worker process. Raises OSError where it cannot be started."""

    def __init__(self, setup: Setup) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            argv = [sys.executable, "-P", "-c", _BOOT, str(theirs.fileno()), "dispatcher worker"]
            try:
                order = order_for(argv, Path.cwd(), os.environ)
                self._supervised = Supervised(order, keep_open=[theirs.fileno()])
            except BaseException:
                ours.close()
                raise
        self._supervised.start()
        self._conn = Connection(ours.detach())
        self._sending = threading.Lock()
        self._current: Attempt | None = None
        self.worn = False
        """True once it is to be replaced."""
        self._send(sys.path)
        self._send(setup)

    @property
    def dead(self) -> bool:
        """True if it ended while it had nothing to do."""
        try:
            return self._conn.poll(0)  # nothing is said then, so it can only be the end
        except OSError:
            return True

    def begin(self, order: Order) -> None:
        """Gives it an attempt to run; from now on it can be canceled and killed."""
        with self._sending:
            self._current = order.claimed.id, order.claimed.attempt
        self._send(order)

    def finish(self, hear: Callable[[FromWorker], None]) -> Outcome:
        """Waits until the attempt has ended. Raises WorkerDied, or NeverStarted."""
        started = False
        try:
            while not isinstance(message := self._conn.recv(), Done):
                started = started or isinstance(message, Started)
                hear(message)
        except (EOFError, OSError) as exc:
            self.worn = True
            raise (WorkerDied(self._how()) if started else NeverStarted(self._how())) from exc
        finally:
            with self._sending:
                self._current = None
        self.worn = message.worn
        return message.outcome

    def cancel(self, key: Attempt, reason: CancelReason) -> None:
        """Asks the attempt to stop, if it is the one that runs. Any thread."""
        if self._current == key:
            self._send(CancelOrder(key, reason))

    def kill(self, key: Attempt) -> None:
        """Kills the process and all its descendants, if that is the attempt that runs. Any thread."""
        with self._sending:
            if self._current == key:
                self._supervised.kill()

    def arm(self, seconds: float) -> None:
        """Lets the kernel end it in so many seconds, unless armed anew. Any thread."""
        self._supervised.arm(seconds)

    def close(self) -> None:
        """Ends it at once, and waits until it and its descendants are gone."""
        with self._supervised:
            self._conn.close()

    def _send(self, message: ToWorker | list[str]) -> None:
        try:
            with self._sending:
                self._conn.send(message)
        except OSError:
            pass  # it is dead, as reading will tell

    def _how(self) -> str:
        self._supervised.wait()
        try:
            code = self._supervised.exit_code(sys.executable, None)
        except SupervisorDied:
            return "was killed"
        if code >= 0:
            return f"exited with status {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        return f"was killed by {name}" + (", as where memory runs out" if name == "SIGKILL" else "")
