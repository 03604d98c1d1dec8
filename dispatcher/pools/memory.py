"""How much memory a job may take, in a process that runs one at a time: the kernel says no, not the job's goodwill."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_OOM_SCORE = 500  # of 1000
_GROWTH = 256 * 2**20  # some caching is well; what leaks shall not go on for ever


@contextmanager
def limited(more_bytes: int | None) -> Iterator[None]:
    """Inside, this process may take so many bytes more for its data than it has now; then allocations fail, which
    Python says by MemoryError. RLIMIT_DATA counts what is private and writable, so neither files that are mapped nor
    libraries. Linux; elsewhere nothing is limited.
    """
    data = _data_bytes() if more_bytes is not None else None
    if data is None or more_bytes is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = data + more_bytes if hard == resource.RLIM_INFINITY else min(data + more_bytes, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    try:
        yield
    finally:
        with suppress(ValueError):  # the job has lowered the hard limit itself
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def resident_bytes() -> int:
    """The memory that this process has; 0 where that is not known."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * resource.getpagesize()


def has_grown(since_bytes: int) -> bool:
    """Whether this process has so much more memory now that a fresh one is better."""
    return resident_bytes() - since_bytes > _GROWTH


def prefer_oom_kill() -> None:
    """Where the machine's memory runs out the kernel shall end this process, not the daemon or PostgreSQL."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE), encoding="ascii")


def _data_bytes() -> int | None:
    if sys.platform != "linux":
        return None
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return None
