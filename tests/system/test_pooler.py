"""A pooler that lends out its sessions by the transaction: the lease would be anybody's, so it is refused at start."""

import contextlib
import os
import pwd
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg import conninfo

from dispatcher.db import SessionLimits, connect_session
from dispatcher.embedded import EmbeddedPostgres
from dispatcher.errors import UnsupportedServer
from tests.system.machine import CACHE
from tests.system.replicas import Fleet, until

pytestmark = pytest.mark.system

PACKAGES = ("pgbouncer", "libc-ares2", "libevent-2.1-7")
CONFIG = """
[databases]
{dbname} = host=127.0.0.1 port={port} dbname={dbname} user={user} password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = transaction
ignore_startup_parameters = extra_float_digits,options
"""


def pgbouncer(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The installed program, or that of Debian's packages, unpacked into `folder`; its environment."""
    if installed := shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin"):
        return [installed], {}
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        pytest.skip("there is no pgbouncer, and no Debian to get it from")
    packages = CACHE / "pgbouncer"
    if len(list(packages.glob("*.deb"))) < len(PACKAGES):
        packages.mkdir(parents=True, exist_ok=True)
        result = subprocess.run(
            ["apt-get", "download", *PACKAGES], cwd=packages, capture_output=True, text=True, check=False, timeout=50
        )
        if result.returncode:
            pytest.skip(f"pgbouncer's packages cannot be had: {result.stderr.strip()[-200:]}")
    for package in packages.glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", package, folder], check=True)
    libraries = ":".join(str(found) for found in folder.glob("usr/lib/*-linux-gnu"))
    return [str(folder / "usr/sbin/pgbouncer")], {"LD_LIBRARY_PATH": libraries}


def free_port() -> int:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as probe:
        return int(probe.getsockname()[1])


def accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@pytest.fixture
def pooled_dsn(postgres_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The database behind a real pgbouncer in transaction mode."""
    params = conninfo.conninfo_to_dict(postgres_dsn)
    # Not pytest's folder: pgbouncer refuses to run as root, and another user cannot enter that.
    with tempfile.TemporaryDirectory(prefix="pgd-pooler-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        command, environment = pgbouncer(Path(folder))
        listen = free_port()
        config = Path(folder, "pgbouncer.ini")
        config.write_text(CONFIG.format(**params, listen=listen))
        user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None
        process = subprocess.Popen(
            [*command, config], env=os.environ | environment, user=user, stderr=subprocess.PIPE, text=True
        )
        try:
            until(lambda: accepts(listen) or process.poll() is not None, "pgbouncer listens")
            assert process.poll() is None, process.communicate()[1]
            yield conninfo.make_conninfo(postgres_dsn, port=listen)
        finally:
            process.terminate()
            process.communicate()


def test_a_transaction_pooler_is_detected(pooled_dsn: str) -> None:
    with pytest.raises(UnsupportedServer, match="goes through a pooler") as refused:
        connect_session(pooled_dsn, name="x", limits=SessionLimits())
    assert "\n" not in str(refused.value)


def test_a_replica_refuses_a_pooler_at_start_in_one_line(pooled_dsn: str, tmp_path: Path) -> None:
    with Fleet(pooled_dsn, tmp_path) as fleet:
        replica = fleet.launch()
        assert replica.wait() == 1
        lines = replica.log_file.read_text().splitlines()
        assert len(lines) == 1
        assert "pooler" in lines[0]
        assert "straight to PostgreSQL" in lines[0]


# The same without pgbouncer: what every such pooler does is answer with a process id of its own.


@contextlib.contextmanager
def rewriting_proxy(port: int) -> Iterator[int]:
    """Passes one connection on; only the server's process id, in BackendKeyData, is another one."""

    def requests(client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def answers(server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError), server.makefile("rb") as stream:
            while head := stream.read(5):
                kind, size = struct.unpack("!ci", head)
                body = stream.read(size - 4)
                client.sendall(head + (struct.pack("!i", 4242) + body[4:] if kind == b"K" else body))

    def serve() -> None:
        client, _ = listener.accept()
        with client, socket.create_connection(("127.0.0.1", port)) as server:
            to_server = threading.Thread(target=requests, args=(client, server))
            to_server.start()
            answers(server, client)
            to_server.join()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


def test_a_process_id_that_is_not_the_servers_gives_a_pooler_away(
    postgres: EmbeddedPostgres, postgres_dsn: str
) -> None:
    port = int(str(conninfo.conninfo_to_dict(postgres_dsn)["port"]))
    with rewriting_proxy(port) as pooled:
        # Without these two the server first answers with a lone byte.
        dsn = conninfo.make_conninfo(postgres_dsn, port=pooled, sslmode="disable", gssencmode="disable")
        with pytest.raises(UnsupportedServer, match="pooler"):
            connect_session(dsn, name="x", limits=SessionLimits())
