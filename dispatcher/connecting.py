"""What the clients' connections have in common."""

from __future__ import annotations

import select
from typing import Any

import psycopg
from psycopg.pq import ConnStatus, TransactionStatus
from psycopg.pq.abc import PGconn

from dispatcher.db import check_dsn, writable
from dispatcher.queries.operation import Query, Rows

CONNECT_TIMEOUT_S = 10
UNDONE = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)
"""Nothing of the statement stays, and it may be sent again."""
BACKEND = Query("get_backend", reads=True)
UNPREPARED = (
    psycopg.errors.InvalidSqlStatementName,  # a pooler that was not noticed gave us another session
    psycopg.errors.DuplicatePreparedStatement,
    psycopg.errors.FeatureNotSupported,  # "cached plan must not change result type": a migration in between
)
"""What a prepared statement can fail with before it did anything."""
WHEN_ASKED = 2**31 - 1
"""As prepare_threshold: only statements that ask for it are prepared."""


def client_params(dsn: str) -> dict[str, Any]:
    """How a client connects: in autocommit, in UTF-8, at first without prepared statements (poolers)."""
    params = writable(check_dsn(dsn))
    params.setdefault("connect_timeout", CONNECT_TIMEOUT_S)
    params.setdefault("application_name", "dispatcher client")
    return {**params, "client_encoding": "utf8", "autocommit": True, "prepare_threshold": None}


def is_direct(conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], rows: Rows) -> bool:
    """Whether no pooler stands in between, by what BACKEND answered: poolers give process ids of their own."""
    return rows == [(conn.info.backend_pid,)]


def usable(pgconn: PGconn) -> bool:
    """False for a connection that was left busy, or that the server has closed meanwhile; asks nobody."""
    if pgconn.status != ConnStatus.OK or pgconn.transaction_status != TransactionStatus.IDLE:
        return False
    poll = select.poll()
    poll.register(pgconn.socket, select.POLLIN)
    try:
        for _ in range(10):
            if not poll.poll(0):
                return True
            pgconn.consume_input()  # the end of the stream raises; anything else is a notice
    except psycopg.OperationalError:
        return False
    return bool(pgconn.status == ConnStatus.OK)
