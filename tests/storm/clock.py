"""The clocks of the day of replicas, which can be stepped while they run; clock.c does it from within a process."""

from __future__ import annotations

import logging
import shutil
import subprocess
from pathlib import Path

log = logging.getLogger("storm")


def build_clock(folder: Path) -> Path | None:
    """The library for `Clock`; None without a C compiler: then no clock is stepped."""
    library = folder / "clock.so"
    if (compiler := shutil.which("cc")) is None:
        log.warning("there is no C compiler: no clock is stepped")
        return None
    source = Path(__file__).with_name("clock.c")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
    return library


class Clock:
    """Steps the clock of each process that has `environment`; `offset` is a file of its own."""

    def __init__(self, library: Path | None, offset: Path) -> None:
        self._offset = offset
        self.step(0)
        self.environment: dict[str, str] = {}
        if library is not None:
            self.environment = {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(offset)}

    def step(self, seconds: int) -> None:
        """From now on it is off by so much, at once."""
        data = seconds.to_bytes(4, "little", signed=True)
        if self._offset.exists():
            with self._offset.open("r+b") as file:  # the very file, which processes have mapped
                file.write(data)
        else:
            self._offset.write_bytes(data)
