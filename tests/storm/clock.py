"""The clock of the day of one replica, which can be stepped while it runs; clock.c does it from within the process."""

from __future__ import annotations

import logging
import shutil
import subprocess
from pathlib import Path

log = logging.getLogger("storm")


class Clock:
    """Steps the clock of each process that has `environment`. Without a C compiler it goes as it goes."""

    def __init__(self, folder: Path) -> None:
        self._offset = folder / "clock-offset"
        self.step(0)
        self.environment: dict[str, str] = {}
        library = folder / "clock.so"
        if (compiler := shutil.which("cc")) is None:
            log.warning("there is no C compiler: no clock is stepped")
            return
        source = Path(__file__).with_name("clock.c")
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
        self.environment = {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(self._offset)}

    def step(self, seconds: int) -> None:
        """From now on it is off by so much, at once."""
        data = seconds.to_bytes(4, "little", signed=True)
        if self._offset.exists():
            with self._offset.open("r+b") as file:  # the very file, which processes have mapped
                file.write(data)
        else:
            self._offset.write_bytes(data)
