"""Hides what this process was started with from others on the machine, on Linux.

Everybody can read a process's arguments, and whoever runs as the same user its environment, such as a program that a
job starts. The kernel shows the memory in which it put them at the start, so that is overwritten. Python has copies.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

# By what they are called, and by what they hold: a URL with a user.
_TELLING = re.compile(r"DSN|URL|PASS|SECRET|TOKEN|KEY|CREDENTIAL|AUTH", re.IGNORECASE)
_SECRET = re.compile(r"pass|key|secret|://[^@]*:[^@]*@", re.IGNORECASE)
_ARGUMENTS, _ENVIRONMENT = 45, 47  # where their bounds stand in /proc/self/stat, behind the name


def conceal_argument(flag: str, value: str) -> None:
    """Overwrites a flag's value in what `ps` shows, where it looks as if it had a password."""
    if _SECRET.search(value):
        entries = [os.fsencode(f"{flag}{between}{value}") for between in ("=", "\0")]
        _overwrite(_ARGUMENTS, {entry: len(os.fsencode(flag)) + 1 for entry in entries})


def conceal_environment() -> None:
    """Overwrites the values of variables that may hold secrets in what /proc shows; `os.environ` and libpq still know
    them.
    """
    _, hidden = split_environment()
    for name, value in hidden.items():
        os.environ[name] = value  # a copy for C, which would read what is overwritten
    entries = {os.fsencode(f"{name}={value}"): len(os.fsencode(name)) + 1 for name, value in hidden.items()}
    _overwrite(_ENVIRONMENT, entries)


def split_environment() -> tuple[dict[str, str], dict[str, str]]:
    """The variables that a process may be started with, and those to be told to it otherwise: they may be secrets."""
    plain: dict[str, str] = {}
    hidden: dict[str, str] = {}
    for name, value in os.environ.items():
        (hidden if value and _telling(name, value) else plain)[name] = value
    return plain, hidden


def _telling(name: str, value: str) -> bool:
    return bool(_TELLING.search(name)) or ("://" in value and "@" in value)


def _overwrite(bounds: int, entries: Mapping[bytes, int]) -> None:
    """Each entry where it stands in that block, from so many bytes on."""
    try:
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        start, end = int(fields[bounds]), int(fields[bounds + 1])
        if not 0 < start < end:  # the kernel does not tell
            return
        with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
            memory.seek(start)
            block = memory.read(end - start)
            for entry, shown in entries.items():
                at = -1
                while (at := block.find(entry + b"\0", at + 1)) >= 0:
                    memory.seek(start + at + shown)
                    memory.write(b"*" * (len(entry) - shown))
    except OSError:  # not on Linux, or in a container that has no /proc: documented, and no reason not to work
        return
