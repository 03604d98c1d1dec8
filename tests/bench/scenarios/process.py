"""What the kernel tells of a process."""

from __future__ import annotations

import os
from pathlib import Path


def resident_mb(pid: int) -> float:
    """Its memory now."""
    return _status_mb(pid, "VmRSS")


def highest_mb(pid: int) -> float:
    """The most it has had so far."""
    return _status_mb(pid, "VmHWM")


def cpu_s(pid: int) -> float:
    """Seconds of a CPU that it has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _status_mb(pid: int, name: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"the kernel tells no {name}")
