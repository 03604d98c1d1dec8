"""The demo's replicas: real processes, as systemd would run them, with short timings so that nobody has to wait."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

# Quick enough to watch, and slow enough for a busy laptop. In production the defaults are calmer.
TIMINGS = {
    "HEARTBEAT_INTERVAL": "200ms",
    "LEASE_DURATION": "2s",
    "SHUTDOWN_GRACE": "4s",
    "ORPHAN_AFTER": "6s",
    "POLL_INTERVAL": "500ms",
}
STOP_TIMEOUT_S = 10.0
PREFIX = "DISPATCHER_"


class Fleet:
    """Replicas by their process id; whatever happens, none is left behind."""

    def __init__(self, dsn: str, folder: Path, extra: dict[str, str]) -> None:
        self._folder = folder
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        # Nothing of the shell's own settings: the demo shows the same everywhere.
        kept = {name: value for name, value in os.environ.items() if not name.startswith((PREFIX, "PG"))}
        kept.pop("DATABASE_URL", None)
        own = {"DSN": dsn, "METRICS_PORT": "0", **TIMINGS}
        self._env = {**kept, **{PREFIX + name: value for name, value in own.items()}, **extra}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in list(self._processes):
            if kind is None:
                self.stop(pid)
            else:
                self.kill(pid)

    def start(self) -> int:
        """Starts a replica; its process id."""
        with (self._folder / f"replica-{len(self._processes) + 1}.log").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "dispatcher", "run"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self._folder,
                env=self._env,
                start_new_session=True,  # Ctrl-C in the terminal is for the demo, which stops them in order
            )
        self._processes[process.pid] = process
        return process.pid

    def died(self) -> list[int]:
        """Replicas that ended although nobody asked them to."""
        return [pid for pid, process in self._processes.items() if process.poll() is not None]

    def kill(self, pid: int) -> float:
        """kill -9: no handler runs, no connection is closed in order; the monotonic instant at which it was sent."""
        process = self._processes.pop(pid)
        process.send_signal(signal.SIGKILL)
        at = time.monotonic()
        process.wait()
        return at

    def stop(self, pid: int) -> int | None:
        """SIGTERM; the exit status, None if it had to be killed."""
        process = self._processes[pid]
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return None
        finally:
            self.kill(pid)

    def logs(self, lines: int = 12) -> str:
        """The end of each replica's log."""
        parts = []
        for file in sorted(self._folder.glob("replica-*.log")):
            last = file.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
            parts += [f"--- {file.name}", *last]
        return "\n".join(parts)
