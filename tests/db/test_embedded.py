"""The launcher on a real PostgreSQL: it starts, survives crashes, and leaves nothing behind."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo

from dispatcher.embedded import EmbeddedPostgres, EmbeddedPostgresError
from tests import servers


def put(dsn: str, value: int) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create table if not exists kept (value int)")
        connection.execute("insert into kept values (%s)", [value])


def kept(dsn: str) -> list[int]:
    with psycopg.connect(dsn) as connection:
        return [value for (value,) in connection.execute("select value from kept order by value")]


def gone(pid: int, timeout_s: float = 10.0) -> bool:
    """Wait until the process is gone; a zombie that process 1 has yet to reap counts as gone."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        status = Path(f"/proc/{pid}/stat")
        if status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


def test_committed_rows_survive_kill_and_restarts(postgres: EmbeddedPostgres) -> None:
    put(postgres.dsn, 1)
    postgres.kill()
    assert postgres.pid is None
    postgres.start()
    put(postgres.dsn, 2)
    postgres.restart("immediate")
    put(postgres.dsn, 3)
    postgres.restart()
    assert kept(postgres.dsn) == [1, 2, 3]


def test_kill_with_open_sessions_does_not_hinder_the_next_start(postgres: EmbeddedPostgres) -> None:
    put(postgres.dsn, 1)
    with psycopg.connect(postgres.dsn) as connection:
        connection.execute("select 1")
        postgres.kill()
        postgres.start()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
    assert kept(postgres.dsn) == [1]


def test_tcp_asks_for_a_password_and_keeps_its_port(postgres: EmbeddedPostgres) -> None:
    for _ in range(2):
        with psycopg.connect(postgres.tcp_dsn) as connection:
            connection.execute("select 1")
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(conninfo.make_conninfo(postgres.tcp_dsn, password="wrong"))
        postgres.restart("immediate")


def test_socket_is_only_for_its_owner_and_its_path_short(server: EmbeddedPostgres) -> None:
    folder = Path(str(conninfo.conninfo_to_dict(server.dsn)["host"]))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(str(folder / ".s.PGSQL.5432")) < 100
    with psycopg.connect(server.dsn) as connection:
        assert connection.execute("show listen_addresses").fetchone() == ("",)


def test_close_leaves_no_process_and_no_file() -> None:
    with EmbeddedPostgres(bindir=servers.binaries(), durable=False) as own:
        pid = own.pid
        home = own.data_dir.parent
        assert home.exists()
    assert pid is not None
    assert gone(pid)
    assert not home.exists()
    own.close()


def test_data_folder_is_reused_and_only_by_one_server_at_a_time(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with EmbeddedPostgres(data, bindir=servers.binaries()) as first:
        put(first.dsn, 1)
        with pytest.raises(EmbeddedPostgresError, match=r'did not start: .*"postmaster.pid" already exists'):
            EmbeddedPostgres(data, bindir=servers.binaries()).start()
        assert kept(first.dsn) == [1]
    with EmbeddedPostgres(data) as second:
        put(second.dsn, 2)
        assert kept(second.dsn) == [1, 2]


def test_unknown_setting_is_told_in_one_line() -> None:
    own = EmbeddedPostgres(bindir=servers.binaries(), options={"no_such_setting": "1"})
    with pytest.raises(EmbeddedPostgresError, match=r'did not start: .*unrecognized .* "no_such_') as raised:
        own.start()
    assert "\n" not in str(raised.value)
    own.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's notice of a parent's death is Linux's")
def test_killed_parent_leaves_no_server() -> None:
    script = (
        "from dispatcher.embedded import EmbeddedPostgres; from tests import servers\n"
        "server = EmbeddedPostgres(bindir=servers.binaries(), durable=False); server.start()\n"
        "print(server.pid, server.data_dir.parent, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as parent:
        assert parent.stdout is not None
        pid, home = parent.stdout.readline().split()
        os.kill(int(pid), 0)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert gone(int(pid))
    subprocess.run(["rm", "-rf", home], check=True)
