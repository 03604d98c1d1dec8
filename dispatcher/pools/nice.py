"""Jobs that compute leave the CPU to the dispatcher and the database when those want it."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

_NICE = 10
_TRIES, _PAUSE_S = 10, 0.11  # Linux lets an ordinary user change one group each tenth of a second


def be_nice() -> None:
    """Lowers the priority of this process, and of its session where Linux shares the CPU among sessions first
    (sched(7), the autogroup feature), which a worker process has to itself.
    """
    os.nice(_NICE)
    for _ in range(_TRIES):
        try:
            Path("/proc/self/autogroup").write_text(str(_NICE), encoding="ascii")
        except OSError as exc:
            if exc.errno == errno.EAGAIN:
                time.sleep(_PAUSE_S)
                continue
        return
