"""A PostgreSQL of one's own: find the server's binaries, start them, stop them, leave nothing behind.

For `dispatcher dev`, the demo and the tests. The server listens on a unix socket in a folder that only its
owner may enter, and on TCP only if asked to. PostgreSQL refuses to run as root, so root starts it as another
user; where that user may not enter the folders in question (a virtual environment under /root), in a user
namespace. On Linux the kernel tells the server when the thread that started it is gone, and it shuts down.
"""

import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import psycopg
from psycopg import conninfo, sql

from dispatcher.embedded_binaries import EmbeddedPostgresError, find_binaries, major_version

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError", "find_binaries"]


_START_TIMEOUT_S = 60.0  # recovery after a crash under load; a clean start takes 0.05 s
_STOP_TIMEOUT_S = 30.0
_STOP_SIGNALS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}

# Runs between us and the server: a program of its own and not a preexec_fn, which may deadlock where other
# threads run. PR_SET_PDEATHSIG (1) comes after the change of user, which clears it, and before the question
# whether the parent is still there: it may have died in between.
_LAUNCHER = """
import ctypes, os, signal, sys
parent, uid, gid, *command = sys.argv[1:]
if uid:
    os.setgroups([]); os.setgid(int(gid)); os.setuid(int(uid))
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, int(signal.SIGINT), 0, 0, 0)
    if os.getppid() != int(parent): sys.exit("the starting process is gone")
os.execv(command[0], command)
"""


@dataclass(frozen=True, slots=True)
class _Identity:
    """As whom the server runs: as us, or, if we are root, as another user or as us with another number."""

    uid: int | None = None
    gid: int | None = None
    prefix: tuple[str, ...] = ()

    @classmethod
    def choose(cls, bindir: Path, data_dir: Path) -> Self:
        if os.geteuid() != 0:
            return cls()
        if (data_dir / "PG_VERSION").exists():
            owner = data_dir.stat()
            return cls(owner.st_uid, owner.st_gid) if owner.st_uid else cls._in_namespace()
        names = {account.pw_name: account for account in pwd.getpwall()}
        account = names.get("postgres") or names["nobody"]
        os.chown(data_dir, account.pw_uid, account.pw_gid)
        probe: list[str | Path] = [
            "/bin/sh",
            "-c",
            '"$1" --version && cd "$2"',
            "sh",
            bindir / "postgres",
            data_dir,
        ]
        user = cls(account.pw_uid, account.pw_gid)
        if user.run(probe).returncode == 0:
            return user
        os.chown(data_dir, 0, 0)
        return cls._in_namespace()

    @classmethod
    def _in_namespace(cls) -> Self:
        # Root's own files belong to user 1000 in there: folders with mode 0700 are open to the server.
        identity = cls(prefix=("unshare", "--user", "--map-user=1000", "--map-group=1000", "--"))
        if not shutil.which("unshare") or identity.run(["true"]).returncode:
            raise EmbeddedPostgresError(
                "PostgreSQL does not run as root, and here no other user may enter its folders and no user "
                "namespace can be made: run this as an ordinary user"
            )
        return identity

    def run(self, command: list[str | Path]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.prefix, *command],
            user=self.uid,
            group=self.gid,
            extra_groups=None if self.uid is None else [],
            cwd="/",  # ours may be closed to that user
            env=_environment(),
            capture_output=True,
            text=True,
            check=False,
        )

    def launch(self, command: list[str | Path], log: Path) -> subprocess.Popen[bytes]:
        user = ["" if number is None else str(number) for number in (self.uid, self.gid)]
        launcher = [*self.prefix, sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *user]
        with log.open("ab") as output:
            return subprocess.Popen(
                [*launcher, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env=_environment(),
                start_new_session=True,  # Ctrl-C in the terminal is for the programs that use the server
            )


def _environment() -> dict[str, str]:
    """Our environment without libpq's settings, which are for clients, and with messages in English."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}


class EmbeddedPostgres:
    """A PostgreSQL server that lives as long as the `with` block, or from `start()` to `close()`.

    Without `data_dir` the data is temporary. A `data_dir` is initialised once and then reused, by the same
    major version only. `options` are server settings; `durable=False` gives up safety from power cuts for
    speed. With `tcp=True` it listens on a free port of 127.0.0.1 too, with a password. The superuser is
    `postgres`. Restarts keep `dsn`, `tcp_dsn` and the data. Start it from a thread that lives as long as the
    server should.
    """

    def __init__(
        self,
        data_dir: Path | str | None = None,
        *,
        bindir: Path | None = None,
        options: Mapping[str, str] | None = None,
        durable: bool = True,
        tcp: bool = False,
    ) -> None:
        # Not in TMPDIR, whose path may be long: that of a socket must stay under 104 bytes on macOS.
        self._home = Path(tempfile.mkdtemp(prefix="pgd-", dir="/tmp"))
        self._remove_home = weakref.finalize(self, _remove, self._home, os.getpid())
        self._socket_dir = self._home / "socket"
        self._temporary = data_dir is None
        self.data_dir = self._home / "data" if data_dir is None else Path(data_dir).absolute()
        self.log_file = (self._home if data_dir is None else self.data_dir) / "server.log"
        self._bindir = bindir
        self._durable = durable
        self._port = _free_port() if tcp else 5432
        self._password = secrets.token_urlsafe(16) if tcp else None
        self._options = {
            "port": str(self._port),
            "listen_addresses": "127.0.0.1" if tcp else "",
            "unix_socket_directories": str(self._socket_dir),
            "logging_collector": "off",
            # Commits stay synchronous: they are to survive kill() and an immediate stop all the same.
            **({} if durable else {"fsync": "off", "full_page_writes": "off"}),
            **(options or {}),
        }
        self._prepared: tuple[Path, _Identity] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        """Connect the superuser to the database postgres by the unix socket."""
        folder = str(self._socket_dir)
        return conninfo.make_conninfo(host=folder, port=self._port, user="postgres", dbname="postgres")

    @property
    def tcp_dsn(self) -> str:
        """The same by TCP, for tests of the network."""
        if self._password is None:
            raise EmbeddedPostgresError("this server does not listen on TCP: make it with tcp=True")
        return conninfo.make_conninfo(self.dsn, host="127.0.0.1", password=self._password)

    @property
    def pid(self) -> int | None:
        """The postmaster's process id, None when it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start, initialising the data if need be, and return when connections are accepted."""
        if self.pid is not None:
            return
        is_first = self._prepared is None
        bindir, identity = self._prepared = self._prepared or self._prepare()
        settings = [f"--{name}={value}" for name, value in self._options.items()]
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            log_start = self.log_file.stat().st_size if self.log_file.exists() else 0
            command: list[str | Path] = [bindir / "postgres", "-D", self.data_dir, *settings]
            self._process = identity.launch(command, self.log_file)
            if self._wait_until_ready(deadline):
                break
            with self.log_file.open("rb") as log:
                log.seek(log_start)
                output = log.read().decode(errors="replace")
            # After kill(), the old backends need a moment to notice; until then they hold the shared memory.
            if "pre-existing shared memory block" not in output or time.monotonic() > deadline:
                raise _failure("PostgreSQL did not start", output)
            time.sleep(0.02)
        if is_first and self._password is not None and not (self.data_dir / "standby.signal").exists():
            with psycopg.connect(self.dsn, autocommit=True) as connection:
                statement = sql.SQL("alter role postgres password {}")
                connection.execute(statement.format(sql.Literal(self._password)))

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """End all sessions and the server: "fast" with a checkpoint, "immediate" as in a crash."""
        process = self._process
        if process is None:
            return
        for signum, timeout in (
            (_STOP_SIGNALS[mode], _STOP_TIMEOUT_S),
            (signal.SIGQUIT, 5.0),
            (signal.SIGKILL, None),
        ):
            process.send_signal(signum)
            try:
                process.wait(timeout)
                break
            except subprocess.TimeoutExpired:
                continue
        self._process = None

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop and start again, with the same data and DSN."""
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """Kill the postmaster with SIGKILL, as a crash would; a later `start()` recovers."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """Stop and remove what is temporary. Idempotent."""
        self.stop("immediate" if self._temporary else "fast")
        self._remove_home()

    def _prepare(self) -> tuple[Path, _Identity]:
        """Find the binaries, make the folders, initialise the data."""
        bindir, is_new = self._choose_binaries()
        if os.geteuid() == 0:
            # The other user has to get through; what is inside has modes of its own.
            self._home.chmod(0o711)
        self._socket_dir.mkdir(mode=0o700, exist_ok=True)
        identity = _Identity.choose(bindir, self.data_dir)
        if identity.uid is not None and identity.gid is not None:
            os.chown(self._socket_dir, identity.uid, identity.gid)
        if is_new:
            self._initialise(bindir, identity)
        return bindir, identity

    def _choose_binaries(self) -> tuple[Path, bool]:
        version_file = self.data_dir / "PG_VERSION"
        if not version_file.exists():
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            if any(self.data_dir.iterdir()):
                problem = "is not empty and holds no PostgreSQL data: choose another folder"
                raise EmbeddedPostgresError(f"{self.data_dir} {problem}")
            return self._bindir or find_binaries(), True
        needed = int(version_file.read_text())
        bindir = self._bindir or find_binaries(needed)
        if (major := major_version(bindir)) != needed:
            raise EmbeddedPostgresError(
                f"{self.data_dir} holds data of PostgreSQL {needed}, {bindir} is {major}: "
                f"use a server of version {needed} or another folder"
            )
        return bindir, False

    def _initialise(self, bindir: Path, identity: _Identity) -> None:
        flags = ["--username=postgres", "--encoding=UTF8", "--no-locale", "--no-instructions"]
        flags += ["--auth-local=trust", "--auth-host=scram-sha-256"]
        if self._temporary or not self._durable:
            flags.append("--no-sync")
        result = identity.run([bindir / "initdb", "-D", self.data_dir, *flags])
        if result.returncode:
            raise _failure(f"initdb failed in {self.data_dir}", result.stdout + result.stderr)

    def _wait_until_ready(self, deadline: float) -> bool:
        """Wait as pg_ctl does: line 8 of the lock file tells the state. False if the server is gone."""
        assert self._process is not None
        lock_file = self.data_dir / "postmaster.pid"
        while self._process.poll() is None:
            try:
                lines = lock_file.read_text().splitlines()
            except FileNotFoundError:
                lines = []
            if len(lines) > 7 and lines[0] == str(self._process.pid) and lines[7].strip() == "ready":
                return True
            if time.monotonic() > deadline:
                self.stop("immediate")
                return False
            time.sleep(0.005)  # a file offers nothing to wait on
        self._process = None
        return False


def _failure(what: str, output: str) -> EmbeddedPostgresError:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"FATAL|ERROR|error:|HINT", line)] or lines
    return EmbeddedPostgresError(f"{what}: {' / '.join(telling[-2:]) or 'no output'}")


def _remove(home: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child that ends must not take it away from us
        shutil.rmtree(home, ignore_errors=True)


def _free_port() -> int:
    # Below the range that the system gives out, so that nobody is given it while the server restarts.
    for _ in range(100):
        port = 15_000 + secrets.randbelow(15_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise EmbeddedPostgresError("no free TCP port on 127.0.0.1 between 15000 and 30000")


if __name__ == "__main__":  # for scripts: print where the server is
    try:
        print(find_binaries())
    except EmbeddedPostgresError as error:
        sys.exit(str(error))
