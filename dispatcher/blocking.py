"""A statement by libpq's own blocking call: one whose answer is large, or is long in coming.

psycopg takes the GIL again for each packet that arrives, and ten times a second while it waits; among busy threads each
time costs up to a switch interval.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar, cast
from weakref import WeakKeyDictionary

import psycopg
from psycopg import errors, pq
from psycopg.adapt import PyFormat, Transformer
from psycopg.rows import RowMaker

from dispatcher.db import Connection
from dispatcher.sql import statement

Row = TypeVar("Row")

_prepared: WeakKeyDictionary[Connection, set[str]] = WeakKeyDictionary()


def fetch(conn: Connection, name: str, params: Mapping[str, object], make: RowMaker[Row]) -> list[Row]:
    """The rows that the statement of this name answers, each as `make` makes it; prepared at its first use.

    For the one thread that uses the session. Raises psycopg.Error as Connection.execute does.
    """
    text, names = _numbered(name)
    transformer = Transformer(conn)
    values = transformer.dump_sequence([params[one] for one in names], [PyFormat.TEXT] * len(names))
    assert None not in values, "no parameter may be null"
    known = _prepared.setdefault(conn, set())
    if name not in known:
        _check(conn.pgconn.prepare(name.encode(), text), pq.ExecStatus.COMMAND_OK)
        known.add(name)
    result = conn.pgconn.exec_prepared(name.encode(), cast("Sequence[bytes]", values), result_format=pq.Format.BINARY)
    _check(result, pq.ExecStatus.TUPLES_OK)
    transformer.set_pgresult(result)
    return transformer.load_rows(0, result.ntuples, make)


@functools.cache
def _numbered(name: str) -> tuple[bytes, list[str]]:
    """A statement with `$1`, `$2` ... for its parameters, and their names in this order."""
    names: list[str] = []

    def number(match: re.Match[bytes]) -> bytes:
        parameter = match[1].decode()
        if parameter not in names:
            names.append(parameter)
        return b"$%d" % (names.index(parameter) + 1)

    return re.sub(rb"%\((\w+)\)s", number, statement(name)).replace(b"%%", b"%"), names


def _check(result: pq.abc.PGresult, expected: pq.ExecStatus) -> None:
    if result.status == expected:
        return
    state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
    message = result.get_error_message()
    try:
        kind = errors.lookup(state)
    except KeyError:  # none where the connection is gone
        kind = psycopg.OperationalError
    raise kind(message)
