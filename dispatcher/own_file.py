"""OwnFile: an open file of this process that must stay what it is.

Jobs on threads share the file descriptors of their process. One that closes a number which is not its own (a range of
them, or its own one twice) takes a session away from under libpq; the number is then given to the next file or
connection that anybody opens, and libpq would write into that one: a claim into another session, or into a job's file.
So before each use it is looked at whether the number still names the same file. If not, this process is past repair.
"""

from __future__ import annotations

import os
import weakref
from contextlib import suppress

from dispatcher.abort import end_process

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


def let_go() -> None:
    """In a child that was forked: closes its copies."""
    for file in list(_ours):
        if file.intact:
            with suppress(OSError):
                os.close(file.fd)
    _ours.clear()


def _named(fd: int) -> tuple[int, int]:
    stat = os.fstat(fd)
    return stat.st_dev, stat.st_ino
