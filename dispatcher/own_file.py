"""OwnFile: an open file of this process that must stay what it is.

Jobs on threads share the file descriptors of their process. One that closes a number which is not its own (a range of
them, or its own one twice) takes a session away from under libpq; the number is then given to the next file or
connection that anybody opens, and libpq would write into that one: a claim into another session, or into a job's file.
So before each use it is looked at whether the number still names the same file. If not, this process is past repair
and ends at once, as in a crash: PostgreSQL, and whoever sees it dead, does the rest.

A child that a job forks has copies of them all. It lets go of them, or the kernel would not close a dead replica's
sessions, and its lock would look held, for as long as that child lives.
"""

from __future__ import annotations

import logging
import os
import weakref
from contextlib import suppress

log = logging.getLogger("dispatcher.daemon")

CLOSED = "a job has closed a file that is not its own, by which this process lives"
_ours: weakref.WeakSet[OwnFile] = weakref.WeakSet()


class OwnFile:
    """The open file that `fd` names now."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._is = _named(fd)
        _ours.add(self)

    @property
    def intact(self) -> bool:
        """Whether the number still names it."""
        try:
            return _named(self.fd) == self._is
        except OSError:
            return False

    def check(self) -> None:
        """Returns if it is intact; otherwise nothing does any more."""
        if not self.intact:
            end_process(f"{CLOSED} (number {self.fd})")

    def forget(self) -> None:
        """It is about to be closed."""
        _ours.discard(self)


def end_process(why: str) -> None:
    """Ends this process at once, and leaves its lock file to prove that."""
    log.critical("%s: ends at once", why)
    os._exit(1)


def let_go_in_children() -> None:
    """From now on a child that is forked, and not given another program, closes its copies first."""
    os.register_at_fork(after_in_child=_let_go)


def _named(fd: int) -> tuple[int, int]:
    stat = os.fstat(fd)
    return stat.st_dev, stat.st_ino


def _let_go() -> None:
    for file in list(_ours):
        if file.intact:
            with suppress(OSError):
                os.close(file.fd)
    _ours.clear()
