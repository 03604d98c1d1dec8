"""Connections: how a session of the daemon is opened, pinned and judged."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any

import psycopg
import tenacity
from psycopg import conninfo
from psycopg.rows import TupleRow

from dispatcher.errors import (
    GRANT_HINT,
    DatabaseUnavailable,
    DispatcherError,
    InRecovery,
    SchemaError,
    SettingsError,
    UnsupportedServer,
)
from dispatcher.guarded import GuardedConnection
from dispatcher.sql import statement

Connection = psycopg.Connection[TupleRow]
MIN_SERVER = 150000  # 15.0


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """Time-outs that the server and the kernel keep for a session, in seconds; 0 switches one off."""

    statement_s: float = 30.0
    lock_s: float = 0.05
    idle_s: float = 0.0
    silence_s: float = 10.0  # unacknowledged data or a dead peer ends the session after this


def check_dsn(dsn: str) -> dict[str, Any]:
    """The DSN as parameters; raises SettingsError without showing it, for it may hold a password.

    Also where a password with an unescaped `@` or `/` is read as host and port, which libpq's messages would name.
    """
    try:
        params = dict(conninfo.conninfo_to_dict(dsn))
    except psycopg.ProgrammingError:
        raise SettingsError(
            "the DSN is malformed (not shown, it may hold a password): write postgresql://user@host:5432/database"
        ) from None
    port = str(params.get("port") or "")
    url = dsn.startswith(("postgresql://", "postgres://"))
    path = dsn.partition("://")[2].partition("?")[0].partition("/")[2] if url else ""
    if port.strip(",0123456789") or "@" in str(params.get("host") or "") or "@" in path:
        raise SettingsError(
            "the DSN is malformed (not shown, it may hold a password): inside a URL's user and password "
            "write @ as %40, / as %2F and : as %3A"
        )
    return params


def writable(params: dict[str, Any]) -> dict[str, Any]:
    """The same, and of several hosts the one that takes writes, unless they say otherwise."""
    if "," in str(params.get("host") or params.get("hostaddr") or ""):
        params.setdefault("target_session_attrs", "read-write")
    return params


def connect(
    dsn: str,
    *,
    name: str = "",
    connect_timeout_s: int = 5,
    kind: type[Connection] = psycopg.Connection,
    **options: Any,
) -> Connection:
    """A plain connection in autocommit; raises DatabaseUnavailable in one line, never with the password."""
    params = writable(check_dsn(dsn))
    params.setdefault("connect_timeout", connect_timeout_s)
    params["client_encoding"] = "utf8"  # a role's default may say otherwise, and JSON is UTF-8
    if name:
        params["application_name"] = name
    params.update(options)
    with explained():
        return kind.connect(autocommit=True, **params)


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turns psycopg's errors on connecting into ours, of one line, without the password."""
    try:
        yield
    except psycopg.OperationalError as exc:
        raise DatabaseUnavailable(f"cannot connect to PostgreSQL: {first_line(exc)}") from exc
    except psycopg.Error as exc:  # an option that libpq does not know
        raise SettingsError(f"cannot connect to PostgreSQL: {first_line(exc)}") from exc


def connect_session(dsn: str, *, name: str, limits: SessionLimits) -> Connection:
    """A session of the daemon: direct, read-write, pinned; raises DatabaseUnavailable or UnsupportedServer."""
    silence = max(1, round(limits.silence_s))
    params = check_dsn(dsn)
    conn = connect(
        dsn,
        name=name,
        kind=GuardedConnection,
        target_session_attrs=params.get("target_session_attrs", "primary"),
        keepalives=1,
        keepalives_idle=max(1, silence // 3),
        keepalives_interval=max(1, silence // 3),
        keepalives_count=2,
        tcp_user_timeout=round(limits.silence_s * 1000),
    )
    with set_up(conn):
        check_server(conn)
        pin(conn, limits)
        # Prepared at once: the hot statements are planned once a session, generically (see pin_session.sql).
        conn.prepare_threshold = 0
    return conn


@contextlib.contextmanager
def set_up(conn: Connection) -> Iterator[None]:
    """Closes a session whose setting up fails, and says so in one line as DatabaseUnavailable."""
    try:
        yield
    except psycopg.errors.InsufficientPrivilege as exc:
        conn.close()
        raise DatabaseUnavailable(
            f"this role has no right on the dispatcher schema ({first_line(exc)}): {GRANT_HINT}"
        ) from exc
    except psycopg.Error as exc:
        conn.close()
        raise DatabaseUnavailable(f"the session could not be set up: {first_line(exc)}") from exc
    except DispatcherError:
        conn.close()
        raise


def pin(conn: Connection, limits: SessionLimits) -> None:
    """Sets everything that the daemon relies on, whatever the role's defaults."""
    conn.execute(statement("pin_session"), pinned(limits, plan_cache_mode="force_generic_plan", signaled="1"))


def pinned(limits: SessionLimits, *, plan_cache_mode: str = "auto", signaled: str = "") -> dict[str, Any]:
    """The parameters of pin_session; by default of a session that asks now and then, and whose enqueues notify."""
    return {
        "statement_timeout_ms": round(limits.statement_s * 1000),
        "lock_timeout_ms": round(limits.lock_s * 1000),
        "idle_timeout_ms": round(limits.idle_s * 1000),
        "idle_in_transaction_ms": round((limits.idle_s or limits.statement_s) * 1000),
        "connection_check_ms": round(min(limits.silence_s, 5.0) * 500),
        "plan_cache_mode": plan_cache_mode,
        "signaled": signaled,
    }


def check_server(conn: Connection) -> None:
    """Refuses a server that is too old, a standby, a pooler in between, or a database without the schema."""
    row = conn.execute(statement("check_server")).fetchone()
    assert row is not None
    version_num, version, encoding, in_recovery, backend_pid, has_schema = row
    if version_num < MIN_SERVER:
        raise UnsupportedServer(f"PostgreSQL {version} is too old: the dispatcher needs PostgreSQL 15 or later")
    if conn.info.backend_pid != backend_pid:
        raise UnsupportedServer(
            "the connection goes through a pooler (pgbouncer or the like): the lease needs a session of its own, "
            "so give the dispatcher a DSN that leads straight to PostgreSQL"
        )
    if in_recovery:
        raise InRecovery("the server is a standby in recovery: give the dispatcher the primary's address")
    if encoding == "SQL_ASCII":
        raise UnsupportedServer("the database has the encoding SQL_ASCII, which takes any bytes: use one with UTF8")
    if not has_schema:
        raise SchemaError("the database has no dispatcher schema: run `dispatcher migrate` first")


def patiently(
    open_session: Callable[[], Connection],
    *,
    stop: Event,
    failed: Callable[[BaseException], object] = lambda _exc: None,
    attempts_s: float = 2.0,
) -> Connection | None:
    """Opens a session, trying again with growing pauses while the database is away; None once `stop` is set.

    `failed` is told of each try in vain.
    """

    def tell(state: tenacity.RetryCallState) -> None:
        if state.outcome is not None and (exc := state.outcome.exception()) is not None:
            failed(exc)

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(DatabaseUnavailable),
        wait=tenacity.wait_random_exponential(multiplier=0.05, max=attempts_s),
        stop=tenacity.stop_when_event_set(stop),
        sleep=tenacity.sleep_using_event(stop),
        before_sleep=tell,
        reraise=True,
    )
    try:
        return retrying(open_session)
    except DatabaseUnavailable:
        return None


def cut(conn: psycopg.BaseConnection[Any]) -> None:
    """Ends a connection from below, from any thread: whoever waits on it fails at once, without a farewell."""
    with contextlib.suppress(OSError, psycopg.Error):
        end = socket.socket(fileno=os.dup(conn.fileno()))
        try:
            end.shutdown(socket.SHUT_RDWR)
        finally:
            end.close()


def array(values: Sequence[float | str]) -> str:
    """Numbers, or words of letters only, as an array literal; psycopg's own lists cost ten times as much."""
    return f"{{{','.join(map(str, values))}}}"


def first_line(exc: BaseException) -> str:
    """The gist of a database error in one line."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return lines[0] if lines else type(exc).__name__
