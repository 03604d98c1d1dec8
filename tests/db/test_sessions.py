"""Sessions of the daemon: pinned whatever the role says, and refused where they could not keep the promises."""

import contextlib
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import conninfo, sql

from dispatcher import db
from dispatcher.db import Connection, SessionLimits, connect_session
from dispatcher.embedded import EmbeddedPostgres
from dispatcher.errors import DatabaseUnavailable, SchemaError, UnsupportedServer
from tests import servers
from tests.db.contenders import contender, register

HOSTILE = {
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on",
    "synchronous_commit": "off",
    "search_path": "public",
    "timezone": "Asia/Kolkata",
    "datestyle": "SQL, DMY",
    "intervalstyle": "iso_8601",
    "statement_timeout": "1ms",
    "lock_timeout": "1ms",
    "idle_session_timeout": "1ms",
    "idle_in_transaction_session_timeout": "1ms",
    "jit": "on",
    "plan_cache_mode": "force_custom_plan",
    "enable_nestloop": "on",
    "enable_tidscan": "off",
    "enable_hashjoin": "on",
    "enable_mergejoin": "on",
    "enable_seqscan": "on",
    "enable_bitmapscan": "on",
    "max_parallel_workers_per_gather": "8",
}
PINNED = {
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    "synchronous_commit": "on",
    "search_path": "pg_catalog, pg_temp",
    "TimeZone": "UTC",
    "DateStyle": "ISO, DMY",
    "IntervalStyle": "postgres",
    "statement_timeout": "3s",
    "lock_timeout": "50ms",
    "idle_session_timeout": "5s",
    "idle_in_transaction_session_timeout": "5s",
    "client_connection_check_interval": "2500ms",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
    "enable_tidscan": "on",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "max_parallel_workers_per_gather": "0",
}
LEASE_LIMITS = SessionLimits(statement_s=3.0, idle_s=5.0, silence_s=5.0)


@contextlib.contextmanager
def role_defaults(server: EmbeddedPostgres, dsn: str, settings: dict[str, str]) -> Iterator[None]:
    """Defaults of the role in this database, as an administrator may have set them."""
    params = conninfo.conninfo_to_dict(dsn)
    role, database = sql.Identifier(str(params["user"])), sql.Identifier(str(params["dbname"]))
    with psycopg.connect(server.dsn, autocommit=True) as superuser:
        for name, value in settings.items():
            # These two take a list, not a text.
            literal = sql.SQL(value) if name in ("search_path", "datestyle") else sql.Literal(value)
            superuser.execute(
                sql.SQL("alter role {} in database {} set {} = {}").format(
                    role, database, sql.Identifier(name), literal
                )
            )
        yield
        superuser.execute(sql.SQL("alter role {} in database {} reset all").format(role, database))


def test_pins_beat_the_roles_defaults(server: EmbeddedPostgres, dsn: str) -> None:
    tamer = {name: value for name, value in HOSTILE.items() if not name.endswith("_timeout")}
    with role_defaults(server, dsn, tamer), connect_session(dsn, name="pinned", limits=LEASE_LIMITS) as conn:
        seen: dict[str, str] = dict(conn.execute("select name, current_setting(name) from pg_settings").fetchall())
        assert {name: seen[name] for name in PINNED} == PINNED
        # Not only shown: in effect.
        assert conn.execute("show transaction_isolation").fetchone() == ("read committed",)
        conn.execute("update dispatcher.lease set term = term")


def test_pins_beat_the_roles_timeouts(server: EmbeddedPostgres, dsn: str) -> None:
    timeouts = {name: "200ms" for name in HOSTILE if name.endswith("_timeout")}
    with role_defaults(server, dsn, timeouts), connect_session(dsn, name="pinned", limits=LEASE_LIMITS) as conn:
        assert conn.execute("select 1 from pg_sleep(0.3)").fetchone() == (1,)


def test_a_replica_leads_under_a_read_only_serializable_role(
    server: EmbeddedPostgres, dsn: str, conn: Connection
) -> None:
    replica = register(conn)
    hostile = {name: HOSTILE[name] for name in ("default_transaction_isolation", "default_transaction_read_only")}
    with role_defaults(server, dsn, hostile), contender(dsn, replica) as lease:
        assert lease.connect()
        assert lease.contend()
        assert lease.term == 1


def test_an_older_server_is_refused_by_its_version() -> None:
    class Info:
        backend_pid = 1

    class Old:
        info = Info()

        def execute(self, *_: Any) -> "Old":
            return self

        def fetchone(self) -> tuple[int, str, str, bool, int, bool]:
            return 140012, "14.12", "UTF8", False, 1, True

    with pytest.raises(UnsupportedServer, match=r"PostgreSQL 14\.12 is too old: .*15 or later"):
        db.check_server(Old())  # type: ignore[arg-type]


def test_a_database_without_the_schema_is_refused(empty_dsn: str) -> None:
    with pytest.raises(SchemaError, match="dispatcher migrate"):
        connect_session(empty_dsn, name="x", limits=SessionLimits())


def test_a_server_in_recovery_is_refused(pristine: Path) -> None:
    with servers.copy_of(pristine, "in-recovery", durable=False) as standby:
        (standby.data_dir / "standby.signal").touch()
        shutil.chown(standby.data_dir / "standby.signal", standby.data_dir.owner(), standby.data_dir.group())
        standby.restart()
        dsn = servers.role_dsn(standby, servers.MIGRATED)
        with pytest.raises(DatabaseUnavailable, match="standby") as refused:
            connect_session(dsn, name="x", limits=SessionLimits())
        assert "\n" not in str(refused.value)
        # Also where the DSN asks for any server at all.
        with pytest.raises(UnsupportedServer, match="standby in recovery"):
            connect_session(dsn + " target_session_attrs=any", name="x", limits=SessionLimits())
        standby.stop("immediate")
    shutil.rmtree(standby.data_dir)


def test_a_direct_connection_is_not_taken_for_a_pooler(postgres: EmbeddedPostgres, postgres_dsn: str) -> None:
    with connect_session(postgres_dsn, name="tcp", limits=SessionLimits()):
        pass


def test_kernel_ends_a_connection_that_is_silent_for_longer_than_it_may_be(
    postgres: EmbeddedPostgres, postgres_dsn: str
) -> None:
    """Also one on which nothing is under way, and a request that was never acknowledged."""
    with (
        connect_session(postgres_dsn, name="tcp", limits=SessionLimits(silence_s=6.0)) as conn,
        socket.fromfd(conn.fileno(), socket.AF_INET, socket.SOCK_STREAM) as end,
    ):
        assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 6000
        assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        idle_s, interval_s, count = (end.getsockopt(socket.IPPROTO_TCP, name) for name in names)
        assert idle_s + interval_s * count <= 6


def test_the_daemon_logs_no_password_when_a_session_is_refused() -> None:
    dsn = "host=127.0.0.1 port=1 user=app password=hunter2"
    with pytest.raises(DatabaseUnavailable) as refused:
        connect_session(dsn, name="x", limits=SessionLimits())
    assert "hunter2" not in str(refused.value)
