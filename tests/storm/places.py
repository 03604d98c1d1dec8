"""Where the replicas of a storm run: three places, each behind a network of its own, each restarted as systemd would.

The third is another host to the others, as far as they can tell: no death is proven there, and nobody ends its
processes, so that its jobs are taken by `orphan_after` alone. The clock of each can be stepped.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from psycopg import conninfo

from tests.proxy import TcpProxy
from tests.storm import jobs
from tests.storm.clock import Clock, build_clock
from tests.storm.plan import LEASE_S, ORPHAN_AFTER_S, PLACES
from tests.system.replicas import Replica

FAR = PLACES - 1
SETTINGS = {
    "executors": "tests.storm.jobs",
    "heartbeat_interval": "200ms",
    "lease_duration": f"{LEASE_S}s",
    "orphan_after": f"{ORPHAN_AFTER_S}s",
    "poll_interval": "300ms",
    "shutdown_grace": "1500ms",
    "threads": str(jobs.THREADS),
    "processes": "1",
    "limits": f"*={jobs.LIMITS.overall}",
}
RESTART_S = 0.2
LOOK_S = 0.02


class Place:
    """One replica after another, and the network between it and the server."""

    def __init__(self, number: int, dsn: str, folder: Path, library: Path | None) -> None:
        self.number = number
        self.folder = folder
        self.proxy = TcpProxy("127.0.0.1", int(str(conninfo.conninfo_to_dict(dsn)["port"])))
        self._dsn = conninfo.make_conninfo(dsn, port=self.proxy.port)
        self.clock = Clock(library, folder / f"clock-{number}")
        self.replica = self._start()
        self.ended: list[tuple[int, Path]] = []
        """Exit statuses, negative for a signal, and the logs."""
        self._restart_at: float | None = None

    def send(self, number: signal.Signals) -> None:
        """A signal to the process that runs there now, if one does."""
        with suppress(ProcessLookupError):
            self.replica.send(number)

    def look_after(self) -> None:
        """Starts another process where one has ended."""
        status = self.replica.process.poll()
        if status is None:
            return
        if self._restart_at is None:
            self.ended.append((status, self.replica.log_file))
            self._restart_at = time.monotonic() + RESTART_S
        elif time.monotonic() >= self._restart_at:
            self._restart_at = None
            self.replica = self._start()

    def close(self) -> None:
        """Ends it at once."""
        self.replica.close()
        self.proxy.cut()

    def _start(self) -> Replica:
        far = self.number == FAR
        folder = self.folder / ("far" if far else "near")
        folder.mkdir(exist_ok=True)
        return Replica(
            self._dsn,
            folder,
            len(list(folder.glob("*.log"))),
            SETTINGS,
            environment={"TEST_EVENTS": str(self.folder / "events")} | self.clock.environment,
            module="tests.storm.far_host" if far else "dispatcher",
        )


class Places:
    """All of them, with a thread that restarts what has ended, until `rest()`."""

    def __init__(self, dsn: str, folder: Path) -> None:
        (folder / "events").touch()
        library = build_clock(folder)
        self.all = [Place(number, dsn, folder, library) for number in range(PLACES)]
        self._rest = threading.Event()
        self._thread = threading.Thread(target=self._look_after, name="places", daemon=True)
        self._thread.start()

    def at(self, pid: int | None) -> Place | None:
        """Where this process runs."""
        return next((place for place in self.all if place.replica.pid == pid), None)

    def terminate(self, timeout_s: float) -> list[int]:
        """A graceful stop of all; their exit statuses."""
        self._rest.set()
        self._thread.join()
        for place in self.all:
            place.send(signal.SIGTERM)
        return [place.replica.wait(timeout_s) for place in self.all]

    def close(self) -> None:
        """Ends all at once."""
        self._rest.set()
        self._thread.join()
        for place in self.all:
            place.close()

    def ended(self) -> list[int]:
        """The exit statuses of all processes that have ended meanwhile, negative for a signal."""
        return [status for place in self.all for status, _ in place.ended]

    def statuses(self) -> Counter[str]:
        """How the processes have ended."""
        return Counter(_name(status) for status in self.ended())

    def logs(self) -> list[Path]:
        """All that was written."""
        return sorted({log for place in self.all for log in place.folder.glob("*/*.log")})

    def _look_after(self) -> None:
        while not self._rest.wait(LOOK_S):
            for place in self.all:
                place.look_after()


def _name(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit {status}"
