"""The end of a process that is past repair: at once, as in a crash. Whoever sees it dead does the rest."""

from __future__ import annotations

import logging
import os

log = logging.getLogger("dispatcher.daemon")

NO_MEMORY = "the memory of this process is at its end"


def end_process(why: str) -> None:
    """Ends this process whatever state it is in; its lock file stays, to prove that."""
    try:
        log.critical("%s: ends at once", why)
    finally:
        os._exit(1)


def end_without_memory(exc: BaseException) -> None:
    """Ends this process if that is what its own code met: any line may fail then, and each job would."""
    if isinstance(exc, MemoryError):
        end_process(NO_MEMORY)
