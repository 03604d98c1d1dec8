"""A Dask cluster of real processes on loopback: a scheduler, and workers, each with a folder of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from distributed import Client

from tests.ports import free_port

PATIENCE_S = 30.0
QUIET = {"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "30s", "DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": "warning"}


class Cluster:
    """Started with `with`; nothing of it is left behind."""

    def __init__(self, folder: Path, *, workers: int = 4, threads: int = 25, nanny: bool = False) -> None:
        self._folder = folder
        self._count, self._threads, self._nanny = workers, threads, nanny
        self.port = free_port()
        self.scheduler: subprocess.Popen[bytes] | None = None
        self.workers: list[subprocess.Popen[bytes]] = []

    @property
    def address(self) -> str:
        """Of the scheduler."""
        return f"tcp://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.start_scheduler()
        for _ in range(self._count):
            self.start_worker()
        with Client(self.address, timeout=PATIENCE_S, set_as_default=False) as client:
            client.wait_for_workers(self._count, timeout=PATIENCE_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in [*self.workers, self.scheduler]:
            if process is not None:
                kill(process)

    def start_scheduler(self) -> None:
        """At the same address each time."""
        self.scheduler = self._start("scheduler", ["dask_scheduler", "--port", str(self.port), "--no-dashboard"])

    def start_worker(self) -> subprocess.Popen[bytes]:
        """One more."""
        number = len(self.workers)
        options = ["--nthreads", str(self._threads), "--no-dashboard", "--memory-limit", "0"]
        options += ["--nanny" if self._nanny else "--no-nanny", "--local-directory", str(self._folder / f"w{number}")]
        self.workers.append(self._start(f"worker-{number}", ["dask_worker", self.address, *options]))
        return self.workers[-1]

    def _start(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        program, *arguments = command
        with (self._folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.{program}", "--host", "127.0.0.1", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=Path(__file__).parents[1],  # where workers find the executors of the tests
                env={**os.environ, **QUIET},
                start_new_session=True,
            )


def kill(process: subprocess.Popen[bytes]) -> None:
    """kill -9 of a process, stopped or not, and of what it started in the same moment."""
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
    process.send_signal(signal.SIGKILL)
    process.wait()
