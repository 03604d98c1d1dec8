"""pgbouncer, the installed one or that of Debian's packages: those are fetched once and unpacked, nothing is installed.

`python -m tests.system.pgbouncer` fetches them, for a machine whose tests are to run without a network.
"""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from psycopg import conninfo

from tests.ports import free_port
from tests.system.machine import CACHE
from tests.system.replicas import until

PACKAGES = ("pgbouncer", "libc-ares2", "libevent-2.1-7")
CONFIG = """
[databases]
{dbname} = host=127.0.0.1 port={port} dbname={dbname} user={user} password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
ignore_startup_parameters = extra_float_digits,options
"""


class NoPooler(Exception):
    """pgbouncer cannot be had here; the message says why."""


def fetch() -> list[Path]:
    """Debian's packages, from the cache or the archive; none where the program is installed."""
    if _installed():
        return []
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise NoPooler("there is no pgbouncer, and no Debian to get it from")
    packages = CACHE / "pgbouncer"
    if len(list(packages.glob("*.deb"))) < len(PACKAGES):
        packages.mkdir(parents=True, exist_ok=True)
        command = ["apt-get", "download", *PACKAGES]
        result = subprocess.run(command, cwd=packages, capture_output=True, text=True, check=False, timeout=50)
        if result.returncode:
            raise NoPooler(f"pgbouncer's packages cannot be had: {result.stderr.strip()[-200:]}")
    return list(packages.glob("*.deb"))


@contextlib.contextmanager
def pooled(dsn: str, mode: Literal["session", "transaction"], *, size: int = 20) -> Iterator[str]:
    """The same database behind a real pgbouncer that has `size` sessions for all."""
    params = conninfo.conninfo_to_dict(dsn)
    # Not pytest's folder: pgbouncer refuses to run as root, and another user cannot enter that.
    with tempfile.TemporaryDirectory(prefix="pgd-pooler-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        command, environment = _program(Path(folder))
        listen = free_port()
        config = Path(folder, "pgbouncer.ini")
        config.write_text(CONFIG.format(**params, listen=listen, mode=mode, size=size))
        user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None
        log = Path(folder, "log")
        with log.open("wb") as output:
            process = subprocess.Popen([*command, config], env=os.environ | environment, user=user, stderr=output)
        try:
            until(lambda: _accepts(listen) or process.poll() is not None, "pgbouncer listens")
            assert process.poll() is None, log.read_text()
            yield conninfo.make_conninfo(dsn, port=listen)
        finally:
            process.terminate()
            process.wait(10)
            print(log.read_text()[-3000:])  # pytest shows it beside a failure


def _program(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The command, unpacked into `folder` if need be, and its environment."""
    if installed := _installed():
        return [installed], {}
    try:
        packages = fetch()
    except NoPooler as exc:
        pytest.skip(str(exc))
    for package in packages:
        subprocess.run(["dpkg-deb", "--extract", package, folder], check=True)
    libraries = ":".join(str(found) for found in folder.glob("usr/lib/*-linux-gnu"))
    return [str(folder / "usr/sbin/pgbouncer")], {"LD_LIBRARY_PATH": libraries}


def _installed() -> str | None:
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


if __name__ == "__main__":
    try:
        fetch()
    except NoPooler as error:
        sys.exit(str(error))
