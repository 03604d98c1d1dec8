"""Children that jobs fork, without giving them another program: what they must not keep of this process.

Copies of its files: the kernel would not close a dead replica's sessions, its lock would look held and its port taken,
for as long as that child lives. And its signal handlers: a child that is told to end would only note it down. Signals
wait until that is done, for whoever forks may send one right away.
"""

from __future__ import annotations

import os
import signal
import threading

from dispatcher import own_file

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_mask = threading.local()
depth = 0
"""In a child it is greater than it was in its parent; os.getpid() says as much but is a call to the kernel."""


def part_with_children() -> None:
    """From now on, in this process."""
    os.register_at_fork(before=_hold_signals, after_in_parent=_let_signals_in, after_in_child=_part)


def _go_deeper() -> None:
    global depth  # noqa: PLW0603 - of the process
    depth += 1


os.register_at_fork(after_in_child=_go_deeper)


def _hold_signals() -> None:
    _mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)


def _let_signals_in() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask.before)


def _part() -> None:
    own_file.let_go()
    for number in HANDLED:
        signal.signal(number, signal.SIG_DFL)
    _let_signals_in()
