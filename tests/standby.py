"""A streaming standby of a test's server, and what becomes of both: promotion, lag, an old primary that comes back."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator

import psycopg
from psycopg import conninfo

from dispatcher.embedded import EmbeddedPostgres, find_binaries
from tests import servers
from tests.proxy import TcpProxy

LOOK_S = 0.005
STANDBY = "standby"


class Pair:
    """A primary and its standby, which streams through `link`: paused, what the primary commits is not replicated."""

    def __init__(self, primary: EmbeddedPostgres, standby: EmbeddedPostgres, link: TcpProxy) -> None:
        self.primary = primary
        self.standby = standby
        self.link = link

    def until_streaming(self) -> None:
        """Waits until the standby has replayed all that the primary has written."""
        with psycopg.connect(self.primary.dsn, autocommit=True) as conn:
            conn.execute("create table if not exists streamed (at timestamptz)")
            conn.execute("insert into streamed values (now())")
            written = _value(conn, "select pg_current_wal_lsn()::text")
            query = "select coalesce(bool_or(replay_lsn >= %s::pg_lsn), false) from pg_stat_replication"
            while not _value(conn, query, written):
                conn.execute("select pg_sleep(%s)", [LOOK_S])

    def be_synchronous(self) -> None:
        """From now on the primary answers a commit only once the standby has it."""
        with psycopg.connect(self.primary.dsn, autocommit=True) as conn:
            conn.execute(f"alter system set synchronous_standby_names = '{STANDBY}'")
            conn.execute("select pg_reload_conf()")
            while _value(conn, "select count(*) from pg_stat_replication where sync_state = 'sync'") != 1:
                conn.execute("select pg_sleep(%s)", [LOOK_S])

    def promote(self) -> None:
        """Makes the standby a primary; returns when it takes writes."""
        with psycopg.connect(self.standby.dsn, autocommit=True) as conn:
            assert _value(conn, "select pg_promote()")

    def dsn(self, database_dsn: str, *, standby_first: bool = False, ports: tuple[int, int] | None = None) -> str:
        """The database on whichever of both takes writes; `ports` where proxies stand in between."""
        both = ports or (port_of(self.primary), port_of(self.standby))
        both = both[::-1] if standby_first else both
        return conninfo.make_conninfo(
            database_dsn,
            host="127.0.0.1,127.0.0.1",
            port=f"{both[0]},{both[1]}",
            target_session_attrs="read-write",
        )

    def standby_dsn(self, database_dsn: str) -> str:
        """The database on the standby, whatever it is by now."""
        return conninfo.make_conninfo(database_dsn, port=port_of(self.standby))


@contextlib.contextmanager
def standby_of(primary: EmbeddedPostgres) -> Iterator[Pair]:
    """A hot standby of a running server that listens on TCP; an asynchronous one at first."""
    folder = primary.data_dir.with_name(f"{primary.data_dir.name}-standby")
    bindir = servers.binaries() or find_binaries()
    with TcpProxy("127.0.0.1", port_of(primary)) as link:
        source = conninfo.make_conninfo(primary.tcp_dsn, port=link.port, dbname="", application_name=STANDBY)
        copy = [
            str(bindir / "pg_basebackup"),
            "-D",
            str(folder),
            "-d",
            source,
            "--write-recovery-conf",
            "--checkpoint=fast",
        ]
        subprocess.run([*copy, "--wal-method=stream", "--no-sync"], check=True, capture_output=True)
        owner = primary.data_dir.stat()
        if folder.stat().st_uid != owner.st_uid:  # root has copied what belongs to the server's user
            subprocess.run(["chown", "-R", f"{owner.st_uid}:{owner.st_gid}", folder], check=True)
        (folder / "postmaster.pid").unlink(missing_ok=True)
        options = {**servers.OPTIONS, "wal_retrieve_retry_interval": "100ms", "cluster_name": STANDBY}
        standby = EmbeddedPostgres(folder, bindir=servers.binaries(), options=options, tcp=True)
        try:
            with standby:
                yield Pair(primary, standby, link)
                standby.stop("immediate")
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def port_of(server: EmbeddedPostgres) -> int:
    """Where it listens on 127.0.0.1."""
    return int(str(conninfo.conninfo_to_dict(server.dsn)["port"]))


def _value(conn: psycopg.Connection, query: str, *params: object) -> object:
    row = conn.execute(query.encode(), params or None).fetchone()
    assert row is not None
    return row[0]
