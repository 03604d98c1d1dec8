"""A machine with a systemd of its own: systemd-nspawn boots an overlay of this host's root.

What it writes is in memory and gone with it, and nothing is installed on the host: where systemd-nspawn is
missing, its package is fetched and unpacked into a cache. It needs root.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pg-dispatcher"
BOOT_TIMEOUT_S = 60
COMMAND_TIMEOUT_S = 60
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}

# In a mount namespace of its own, so that all mounts go with the last process. The root itself is bound,
# without what is mounted below it. systemd-nspawn would leave folders in /run/systemd.
# $1: an empty folder, $2: what is added to the root, and then systemd-nspawn with its arguments.
_BOOT = """
mkdir -p /run/systemd
mount -t tmpfs tmpfs /run/systemd
mount -t tmpfs tmpfs "$1"
mkdir "$1"/low "$1"/up "$1"/work "$1"/tree
mount --bind / "$1"/low
mount -t overlay overlay -o "lowerdir=$1/low,upperdir=$1/up,workdir=$1/work" "$1"/tree
: > "$1"/tree/etc/machine-id
rm -rf "$1"/tree/opt/dispatcher "$1"/tree/etc/dispatcher
cp -a --no-preserve=ownership "$2"/. "$1"/tree/
shift 2
exec "$@"
"""


class MachineError(Exception):
    """The machine cannot be had here; the message says why."""


def nspawn() -> Path:
    """systemd-nspawn: the installed one, or that of Debian's package unpacked into the cache."""
    if os.geteuid() != 0:
        raise MachineError("booting a systemd needs root: run this as root")
    if installed := shutil.which("systemd-nspawn"):
        return Path(installed)
    version = _output("dpkg-query", "--show", "--showformat=${Version}", "systemd").replace(":", "_")
    unpacked = CACHE / f"systemd-container-for-{version}"
    binary = unpacked / "usr/bin/systemd-nspawn"
    if not binary.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            _output("apt-get", "download", "systemd-container", cwd=folder)
            [package] = Path(folder).glob("systemd-container_*.deb")
            _output("dpkg", "--extract", str(package), f"{folder}/unpacked")
            shutil.rmtree(unpacked, ignore_errors=True)
            Path(folder, "unpacked").rename(unpacked)
    return binary


def _output(*command: str, cwd: str | None = None) -> str:
    try:
        result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as exc:
        said = getattr(exc, "stderr", None) or str(exc)
        last = said.strip().splitlines()[-1] if said.strip() else "no output"
        raise MachineError(f"no systemd-nspawn: {' '.join(command[:2])} failed: {last}") from exc
    return result.stdout


class Machine:
    """Boots on entry, is gone on exit. `added` goes over the root; `binds`: host folders by their place."""

    def __init__(self, folder: Path, *, added: Path, binds: Mapping[str, Path]) -> None:
        self._folder = folder
        self._added = added
        self._binds = binds
        self._process: subprocess.Popen[bytes] | None = None
        self._init = 0

    def __enter__(self) -> Self:
        program = nspawn()
        root = self._folder / "machine"
        root.mkdir()
        command: list[str | Path] = [
            *("unshare", "--mount", "--propagation", "private"),
            *("bash", "-euc", _BOOT, "boot", root, self._added),
            *(
                program,
                "--quiet",
                f"--directory={root}/tree",
                "--machine=dispatcher-test",
                "--register=no",
                "--keep-unit",
            ),
            *("--private-network", "--console=pipe", "--kill-signal=SIGKILL", "--notify-ready=yes"),
            *(f"--bind={source}:{place}" for place, source in self._binds.items()),
            *("--boot", "systemd.unit=basic.target", "systemd.show_status=no"),
        ]
        with (
            tempfile.TemporaryDirectory() as folder,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready,
        ):
            ready.bind(f"{folder}/notify")
            ready.settimeout(0.5)
            environment = ENVIRONMENT | {"NOTIFY_SOCKET": f"{folder}/notify"}
            with (self._folder / "console").open("wb") as console:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, env=environment
                )
            self._wait_until_booted(ready)
        return self

    def _wait_until_booted(self, ready: socket.socket) -> None:
        assert self._process is not None
        for _ in range(2 * BOOT_TIMEOUT_S):
            try:
                said = ready.recv(4096).decode().splitlines()
            except TimeoutError:
                if self._process.poll() is not None:
                    break
                continue
            for line in said:
                if line.startswith("X_NSPAWN_LEADER_PID="):
                    self._init = int(line.partition("=")[2])
            if "READY=1" in said:
                return
        self.__exit__(None, None, None)
        console = (self._folder / "console").read_text(errors="replace").strip().splitlines()
        raise MachineError(f"systemd did not boot: {' / '.join(console[-5:]) or 'no output'}")

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            if self._init:
                # With its process 1 a pid namespace ends, and with it the last user of the mounts.
                os.kill(self._init, signal.SIGKILL)
            else:
                self._process.kill()
            self._process.wait(30)

    def run(self, *command: str, check: bool = True) -> str:
        """Runs a program in the machine and returns what it wrote on standard output."""
        enter = ["nsenter", "--target", str(self._init), "--all", "--"]
        result = subprocess.run(
            [*enter, *command],
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            check=False,
            timeout=COMMAND_TIMEOUT_S,
        )
        if check and result.returncode:
            sys.stderr.write(result.stdout)
            raise AssertionError(f"{' '.join(command)} failed with {result.returncode}: {result.stderr.strip()}")
        return result.stdout


def main() -> None:
    """Says in one line whether a systemd can be booted here; exit status 1 if not."""
    with tempfile.TemporaryDirectory() as folder:
        added = Path(folder, "added")
        added.mkdir()
        try:
            with Machine(Path(folder), added=added, binds={}) as machine:
                print(machine.run("systemctl", "--version").splitlines()[0])
        except MachineError as exc:
            sys.exit(str(exc))


if __name__ == "__main__":
    main()
