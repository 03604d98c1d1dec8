"""The fence of last resort: a kernel timer that kills this process unless it is put off again.

The timer runs on CLOCK_BOOTTIME, which goes on while the machine sleeps, and its signal is SIGKILL: it needs no line
of Python to run, no GIL, no signal handler, and it also ends a process that is stopped. Where the C library has no
such timer (macOS), setitimer with SIGALRM at its default action does, except that a stopped process dies only as it
is continued.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
import time
from collections.abc import Callable

_CLOCK_BOOTTIME = 7
_SIGEV_SIGNAL = 0
_TIMER_ABSTIME = 1  # a process that is stopped between a look at the clock and the call must not gain that time


class _Sigevent(ctypes.Structure):
    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("pad", ctypes.c_char * 48),  # the union is 64 bytes on every Linux
    )


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


def boottime() -> float:
    """Seconds that also pass while the machine sleeps: what an owner counts its trust on."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic()


class Fence:
    """One timer for the process. Not inherited by children."""

    def __init__(self) -> None:
        self._timer: ctypes.c_void_p | None = None
        self._sealed = False
        self._lock = threading.Lock()  # the heart arms, the main thread seals
        self.deadline: float | None = None
        """When it strikes, in boottime() seconds; None while disarmed."""
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            event, timer = _Sigevent(signo=signal.SIGKILL, notify=_SIGEV_SIGNAL), ctypes.c_void_p()
            if self._libc.timer_create(_CLOCK_BOOTTIME, ctypes.byref(event), ctypes.byref(timer)) != 0:
                raise OSError(ctypes.get_errno(), "timer_create failed")
            self._timer = timer

    def arm(self, deadline: float) -> None:
        """Lets the process be killed at `deadline` (boottime() seconds; at once if that is past), unless armed anew."""
        with self._lock:
            if not self._sealed:
                self._strike_at(deadline)

    def disarm(self, unless: Callable[[], bool] = lambda: False) -> None:
        """Puts it off until armed again, `unless` it is needed: nobody arms it between that look and the act."""
        with self._lock:
            if self.deadline is not None and not self._sealed and not unless():
                self.deadline = None
                self._set(None)

    def seal(self, deadline: float) -> None:
        """Lets the process be killed at `deadline`, whoever arms or disarms it from now on."""
        with self._lock:
            self._sealed = True
            self._strike_at(deadline)

    def _strike_at(self, deadline: float) -> None:
        self.deadline = deadline
        self._set(deadline)

    def _set(self, deadline: float | None) -> None:
        if self._timer is None:
            signal.setitimer(signal.ITIMER_REAL, 0.0 if deadline is None else max(1e-6, deadline - boottime()))
            return
        at = 0.0 if deadline is None else max(1e-6, deadline)
        whole = int(at)
        value = _Itimerspec(_Timespec(0, 0), _Timespec(whole, int((at - whole) * 1e9)))
        if self._libc.timer_settime(self._timer, _TIMER_ABSTIME, ctypes.byref(value), None) != 0:
            raise OSError(ctypes.get_errno(), "timer_settime failed")
