"""The daemon's side of a worker process: it starts one, hands it jobs one by one, and kills it.

The process is a supervised program (dispatcher/supervised.py): it ends, with all that its job has started, when this
process dies in whatever way, and the proof of this process's death waits for it. Each has a socket of its own: workers
that share a pipe share its lock, and one that dies with the lock in hand stops all the others.
"""

from __future__ import annotations

import signal
import socket
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from dispatcher.conceal import split_environment
from dispatcher.job import CancelReason
from dispatcher.outcome import Outcome
from dispatcher.pools.messages import Attempt, CancelOrder, Done, FromWorker, Order, Setup, Started, ToWorker
from dispatcher.supervised import Supervised, SupervisorDied, order_for

_BOOT = """\
import os, sys
from multiprocessing.connection import Connection
conn = Connection(int(sys.argv[1]))
sys.path[:] = conn.recv()
os.environ.update(conn.recv())
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
                plain, hidden = split_environment()
                order = order_for(argv, Path.cwd(), plain)
                self._supervised = Supervised(order, keep_open=[theirs.fileno()])
            except BaseException:
                ours.close()
                raise
        self._supervised.start()
        self._conn = Connection(ours.detach())
        self._sending = threading.Lock()  # may be held for long: a process that is stopped reads nothing
        self._state = threading.Lock()
        self._current: Attempt | None = None
        self._killer: threading.Timer | None = None
        self.worn = False
        """True once it is to be replaced."""
        self._send(sys.path)
        self._send(hidden)
        self._send(setup)

    @property
    def dead(self) -> bool:
        """True if it ended while it had nothing to do."""
        try:
            return self._conn.poll(0)  # nothing is said then, so it can only be the end
        except OSError:
            return True

    def begin(self, key: Attempt) -> None:
        """From now on this attempt can be canceled and killed."""
        self.worn = True  # unless all goes well
        with self._state:
            self._current = key

    def run(self, order: Order, hear: Callable[[FromWorker], None]) -> Outcome:
        """Gives it the attempt that was begun, and waits until that has ended. Raises WorkerDied, or NeverStarted."""
        started, key = False, (order.claimed.id, order.claimed.attempt)
        try:
            self._send(order)
            while not isinstance(message := self._conn.recv(), Done):
                started = started or isinstance(message, Started)
                hear(message)
            if (message.outcome.job_id, message.outcome.attempt) != key:
                raise ValueError("an answer to something else")
        except Exception as exc:  # the job may have written anything to the socket
            raise (WorkerDied if started else NeverStarted)(self._how(exc)) from exc
        finally:
            with self._state:
                self._current = None
                if self._killer is not None:
                    self._killer.cancel()
                    self._killer = None
        self.worn = message.worn
        return message.outcome

    def stop(self, key: Attempt, reason: CancelReason, kill_after_s: float) -> None:
        """Asks the attempt to stop, if it is the one that runs, and kills it after so long. Any thread; never waits."""
        with self._state:
            if self._current != key or self._killer is not None:
                return
            self._killer = threading.Timer(kill_after_s, self.kill, (key,))
            self._killer.daemon = True
            self._killer.start()
        order = CancelOrder(key, reason)  # which is of no effect on another attempt
        threading.Thread(target=self._send, args=(order,), name=f"cancel {key[0]}", daemon=True).start()

    def kill(self, key: Attempt) -> None:
        """Kills the process and all its descendants, if that is the attempt that runs. Any thread."""
        with self._state:
            if self._current == key:
                self._supervised.kill()

    def arm(self, deadline: float) -> None:
        """Lets the kernel end it at `deadline` (boottime() seconds), unless armed anew. Any thread."""
        self._supervised.arm(deadline)

    def close(self) -> None:
        """Ends it at once, and waits until it and its descendants are gone."""
        with self._supervised:
            pass
        with self._sending:  # its end is gone, so nobody sends for long; who came later must not find another's file
            self._conn.close()

    def _send(self, message: ToWorker | list[str] | dict[str, str]) -> None:
        try:
            with self._sending:
                self._conn.send(message)
        except OSError:
            pass  # it is dead, as reading will tell

    def _how(self, exc: Exception) -> str:
        self._supervised.kill()  # if it lives, as where the job has spoiled the way back
        self._supervised.wait()
        if not isinstance(exc, EOFError | OSError):
            return f"said what cannot be read ({type(exc).__name__}: {exc})"
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
