"""PostgreSQL run out of something: a disk that a test fills, and what replicas may do to a server in such trouble."""

import contextlib
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from dispatcher.embedded import EmbeddedPostgres
from tests.system.replicas import Fleet, Replica

MAX_CPU = 0.35  # of a core; at the tests' ten beats a second a replica in good order takes 0.1
MAX_ROLLBACKS = 12.0  # a second, of two replicas with a handful of services each
MAX_SESSIONS = 10.0  # new ones a second, of the same
TICKS = os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def small_disk(server: EmbeddedPostgres, megabytes: int) -> Iterator[Path]:
    """A disk of its own for a part of this server's data. Stops the server before it goes."""
    path = server.data_dir.with_name(server.data_dir.name + "-disk")
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        path.rmdir()
        pytest.skip(f"a disk that is small takes a tmpfs, and that root: {made.stderr.strip()}")
    try:
        owner = server.data_dir.stat()
        os.chown(path, owner.st_uid, owner.st_gid)
        path.chmod(0o700)
        yield path
    finally:
        server.stop("immediate")
        subprocess.run(["umount", "--lazy", str(path)], check=True)
        path.rmdir()


def fill(disk: Path) -> None:
    """Leaves not a block free."""
    with (disk / "ballast").open("ab", buffering=0) as ballast, contextlib.suppress(OSError):
        os.posix_fallocate(ballast.fileno(), 0, shutil.disk_usage(disk).free)
        while True:
            ballast.write(bytes(4096))


def free(disk: Path) -> None:
    """Undoes `fill`."""
    (disk / "ballast").unlink()


class Watch:
    """What replicas cost and say from now on."""

    def __init__(self, fleet: Fleet, *replicas: Replica) -> None:
        self._fleet = fleet
        self._replicas = replicas
        self._logged = {replica.pid: len(replica.log()) for replica in replicas}
        self._cpu = {replica.pid: cpu_s(replica) for replica in replicas}
        self._server = self._server_counts()
        self._began = time.monotonic()

    def expect_calm(self, seconds: float = 5.0) -> None:
        """For so long there is no busy loop, at the server or in a replica; each log says a thing once at most."""
        time.sleep(seconds)  # a rate over some seconds is what is looked at
        took = time.monotonic() - self._began
        rollbacks, sessions = (
            (after - before) / took for before, after in zip(self._server, self._server_counts(), strict=True)
        )
        cpu = {replica.pid: (cpu_s(replica) - self._cpu[replica.pid]) / took for replica in self._replicas}
        print(f"\nrollbacks {rollbacks:.1f}/s, new sessions {sessions:.1f}/s, cores {sorted(cpu.values())}")
        for replica in self._replicas:
            assert replica.alive
            repeated = {line: count for line, count in self.said(replica).items() if count > 1}
            assert not repeated, f"replica {replica.id} repeats itself: {repeated}"
        assert rollbacks <= MAX_ROLLBACKS
        assert sessions <= MAX_SESSIONS
        assert all(one <= MAX_CPU for one in cpu.values()), cpu

    def said(self, replica: Replica) -> Mapping[tuple[str, str], int]:
        """How often each logger of a replica warned of each kind of error."""
        entries = replica.log()[self._logged[replica.pid] :]
        return Counter(
            (entry.get("logger", ""), entry["event"].partition(": ")[0] + str(entry.get("kind", "")))
            for entry in entries
            if entry["level"] != "info"
        )

    def _server_counts(self) -> tuple[int, int]:
        """Transactions rolled back, and sessions, so far."""
        query = "select xact_rollback, sessions from pg_stat_database where datname = current_database()"
        [(rollbacks, sessions)] = self._fleet.query(query)
        return rollbacks, sessions


def cpu_s(replica: Replica) -> float:
    """The seconds of a core that it has used."""
    fields = Path(f"/proc/{replica.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def unready(replica: Replica) -> dict[str, str]:
    """What /readyz says is wrong."""
    answer = httpx.get(f"http://127.0.0.1:{replica.metrics_port}/readyz")
    return dict(answer.json()["failing"]) if answer.status_code == 503 else {}
