"""Who this process is, and how another one on the same host proves that it is gone.

Two things together prove a death: the process is no longer there (or another one has its number), and nobody holds
its lock file: the lock belongs to an open file that the programs it started inherit, so it stays until the last of
them is gone as well, and tells who they are: should nobody else have ended them, we can. Being refused a look (EPERM,
hidden /proc) proves nothing.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from dispatcher.queries.replicas import Process


class Identity:
    """This process, with its lock file; keep it for the life of the process."""

    def __init__(self, folder: Path | None = None) -> None:
        folder = folder or _runtime_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd, path = tempfile.mkstemp(prefix="replica-", suffix=".lock", dir=folder)
        fcntl.flock(fd, fcntl.LOCK_EX)
        self.lock_fd = fd
        """To be inherited by every program that this process starts."""
        self.process = Process(
            host=socket.gethostname(),
            pid=os.getpid(),
            boot_id=_boot_id(),
            pid_namespace=_pid_namespace(),
            start=_start_time(os.getpid()),
            lock_file=f"{os.fstat(fd).st_ino}:{path}",
        )

    def close(self) -> None:
        """Removes the lock file."""
        if self.process.lock_file:
            Path(self.process.lock_file.partition(":")[2]).unlink(missing_ok=True)
        os.close(self.lock_fd)


def proven_dead(process: Process) -> bool:
    """True only if the process and every program it started are known to be gone."""
    if not _same_kernel(process) or process.start is None:
        return False
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return _lock_free(process)
    except PermissionError:
        return False
    start, zombie = _start_time(process.pid), _is_zombie(process.pid)
    gone = start is not None and (start != process.start or zombie)
    return gone and _lock_free(process)


def forget(process: Process) -> None:
    """Removes the lock file of a process that was proven dead here."""
    if _same_kernel(process) and process.lock_file and _lock_free(process):
        Path(process.lock_file.partition(":")[2]).unlink(missing_ok=True)


def kill(process: Process) -> bool:
    """Kills a process of this host that is still exactly the one registered, frozen most likely, or else the programs
    that it has left behind. True if there was anything to kill; it may need a moment to be gone.
    """
    if not _same_kernel(process) or process.start is None or not hasattr(os, "pidfd_open"):
        return False
    if _kill(process.pid, lambda: _start_time(process.pid) == process.start and not _is_zombie(process.pid)):
        return True
    if _lock_free(process):
        return False
    killed = [_kill(pid, partial(_has_inherited, pid, process)) for pid in _pids()]
    return any(killed)


def _kill(pid: int, is_it: Callable[[], bool]) -> bool:
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        # Looked at with the handle in hand: it cannot be another by now.
        there = is_it()
        if there:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        return there
    except OSError:
        return False
    finally:
        os.close(fd)


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _has_inherited(pid: int, process: Process) -> bool:
    """Whether it has the lock of this process, which it can only have inherited.

    Another replica that just looks whether the lock is free has it for an instant as well, but in its own name.
    """
    _, _, path = (process.lock_file or "").partition(":")
    lock = Path(path).stat()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        if _is_same(file, lock):
            fields = [line.split() for line in (_read(f"/proc/{pid}/fdinfo/{file.name}") or "").splitlines()]
            return any("FLOCK" in line and str(pid) not in line for line in fields if line[:1] == ["lock:"])
    return False


def _is_same(file: Path, other: os.stat_result) -> bool:
    try:
        return os.path.samestat(file.stat(), other)
    except OSError:
        return False  # closed meanwhile, or a file that is no more


def _same_kernel(process: Process) -> bool:
    # Containers share the boot id, not the pid namespace.
    return (
        process.boot_id is not None
        and process.pid_namespace is not None
        and process.boot_id == _boot_id()
        and process.pid_namespace == _pid_namespace()
    )


def _lock_free(process: Process) -> bool:
    inode, _, path = (process.lock_file or "").partition(":")
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False  # removed, or in another mount namespace: no proof
    try:
        if str(os.fstat(fd).st_ino) != inode:
            return False
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _runtime_folder() -> Path:
    if folder := os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]:
        return Path(folder)  # systemd's; the same for all instances of the unit
    return Path(tempfile.gettempdir()) / f"dispatcher-{os.getuid()}"


def _boot_id() -> str | None:
    return _read("/proc/sys/kernel/random/boot_id")


def _pid_namespace() -> str | None:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None


def _stat_fields(pid: int) -> list[str] | None:
    text = _read(f"/proc/{pid}/stat")
    return None if text is None else text.rpartition(")")[2].split()  # the name before may hold anything


def _start_time(pid: int) -> str | None:
    fields = _stat_fields(pid)
    return None if fields is None else fields[19]


def _is_zombie(pid: int) -> bool:
    fields = _stat_fields(pid)
    return fields is not None and fields[0] in ("Z", "X")


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
