"""Supervised: one program with its supervisor, which ends it with this process, or when it is told to.

Each program gets a supervisor (dispatcher/supervisor.py), a small process that is its parent, kills it when the pipe
from here closes, and ends only when all descendants are gone. The threads and locks of this process make anything
between fork and exec unsafe; the supervisor has one thread, so that is where it happens.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL
from typing import Self

from dispatcher.errors import DispatcherError

READ_BYTES = 65536  # the size of a pipe
_SUPERVISOR = str(Path(__file__).with_name("supervisor.py"))

_inherited: set[int] = set()


class SupervisorDied(DispatcherError):
    """The supervisor of a program was killed; the program was killed too."""


def inherit(fd: int) -> None:
    """Lets every program inherit `fd`: a lock on it is free once this process and all of them are gone."""
    _inherited.add(fd)


def disinherit(fd: int) -> None:
    """Takes `fd` back; call it before closing it."""
    _inherited.discard(fd)


def order_for(argv: Sequence[str], cwd: str | os.PathLike[str], env: Mapping[str, str]) -> bytes:
    """What the supervisor reads first; sent by pipe, since anybody can read a command line."""
    fields = [os.fspath(cwd), str(len(argv)), *argv, *(f"{name}={value}" for name, value in env.items())]
    if not argv or any("\0" in field for field in fields):
        raise ValueError("a program needs a name, and NUL cannot be passed to it")
    order = "\0".join(fields).encode("utf-8", "surrogateescape")
    return len(order).to_bytes(8, "big") + order


class Supervised:
    """One supervisor and the pipes to it. The program writes to where `output` says: None, to where this process does.

    As a context it is killed at the end, with all its descendants, and waited for.
    """

    def __init__(
        self,
        order: bytes,
        *,
        kill_after_s: float = 0.0,
        keep_open: Sequence[int] = (),
        stdin: int = subprocess.DEVNULL,
        output: int | None = None,
    ) -> None:
        self.terminated_early = False
        self._report = bytearray()
        self._lock = threading.Lock()
        theirs, control = os.pipe()
        self._status, reports = os.pipe()
        self._control: int | None = control
        arguments = [str(number) for number in (theirs, reports, os.getpid(), kill_after_s)]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", _SUPERVISOR, *arguments],
                stdin=stdin,
                stdout=output,
                stderr=output,
                bufsize=0,
                pass_fds=(theirs, reports, *_inherited, *keep_open),
                env={name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},
                start_new_session=True,
            )
        except BaseException:
            os.close(control)
            os.close(self._status)
            raise
        finally:
            os.close(theirs)
            os.close(reports)
        self._order = order

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Kills what still runs, and waits until it is gone, for that is the promise."""
        self.kill()
        self._process.wait()
        os.close(self._status)

    def start(self) -> None:
        """Gives the order."""
        with suppress(BrokenPipeError), self._lock:
            while self._order and self._control is not None:
                self._order = self._order[os.write(self._control, self._order) :]

    def terminate(self) -> None:
        """Asks the program to end; may be called by any thread and at any time."""
        # Under the lock, for after the end the number may already name somebody else's file.
        with self._lock, suppress(BrokenPipeError):
            if self._control is not None:
                self.terminated_early = "X" not in self._reports()
                os.write(self._control, b"T")

    def kill(self) -> None:
        """Kills the program and all its descendants; may be called by any thread and at any time."""
        with self._lock:
            if self._control is not None:
                os.close(self._control)
            self._control = None

    def arm(self, deadline: float) -> None:
        """Lets the supervisor, or else the kernel, kill them all at `deadline`, in boottime(), unless armed anew."""
        with self._lock, suppress(BrokenPipeError):
            if self._control is not None:
                os.write(self._control, b"A" + max(1, int(deadline * 1e6)).to_bytes(8, "big"))

    def wait(self) -> None:
        """Until the supervisor has ended, and with it everything."""
        while data := os.read(self._status, READ_BYTES):
            self._report += data
        self._process.wait()
        self._kill_if_orphaned()

    def exit_code(self, program: str, cwd: str | os.PathLike[str] | None) -> int:
        """The program's exit status, or the number of the signal that ended it, negative."""
        words = self._reports()
        if "E" in words:
            step, number = words["E"]
            raise OSError(int(number), os.strerror(int(number)), program if step == "exec" else str(cwd))
        if "X" not in words:
            raise SupervisorDied("the supervisor of the program was killed; what the program did is unknown")
        return int(words["X"][0])

    def _reports(self) -> dict[str, list[str]]:
        lines = [line.split() for line in self._report.decode().splitlines()]
        return {line[0]: line[1:] for line in lines}

    def _kill_if_orphaned(self) -> None:
        """A supervisor that was killed takes the program with it, but not the program's children."""
        reports = self._reports()
        if "P" in reports and "X" not in reports:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(int(reports["P"][0]), SIGKILL)
