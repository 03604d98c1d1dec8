"""Named queries: SQL from a file of the daemon's administrator. A payload names one and gives values, never SQL.

A query runs in a transaction that is READ ONLY, so that it cannot write, not even by a function that it calls, and
REPEATABLE READ, so that all of it is of one instant.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
from psycopg import Column, Connection, errors
from psycopg.adapt import Dumper
from psycopg.types.array import ListDumper
from psycopg.types.numeric import DecimalDumper
from psycopg.types.string import StrDumperUnknown
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from dispatcher import Context, DatabaseUnavailable, Fail

from .connections import stopping
from .query_values import KINDS, Value, checked

SETTING = "DISPATCHER_QUERIES"
EXAMPLE = 'a TOML file with [sales], sql = "select … where day = %(day)s" and params = {day = "date"}'
# Of SQLSTATE, what no other try changes: unsupported, data, a write, names and rights and syntax, program limits.
HOPELESS = ("0A", "21", "22", "25001", "25006", "3F", "42", "54", "P0")
NOT_PLAIN = re.compile(rb"[^A-Za-z0-9_\x80-\xff]")
# What a value looks like must not depend on the role or the server: read by programs.
SETTINGS = {"TimeZone": "UTC", "DateStyle": "ISO, YMD", "IntervalStyle": "iso_8601", "extra_float_digits": "1"}


class NamedQuery(BaseModel):
    """A section of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sql: str
    """One statement that gives rows, with placeholders such as %(month)s; a % itself is written %%."""
    description: str = ""
    params: dict[str, str] = {}
    """The kind of each: text, int, number, bool, date, timestamp, uuid; `int[]` is a list, `date?` may be left out."""
    dsn_env: str | None = None
    """The variable that holds the DSN of another database; without it the dispatcher's."""
    statement_timeout: float | None = None
    """In seconds."""

    @field_validator("params")
    @classmethod
    def _known_kinds(cls, params: dict[str, str]) -> dict[str, str]:
        for name, kind in params.items():
            if kind.removesuffix("?").removesuffix("[]") not in KINDS:
                raise ValueError(f"{name}: there is no kind {kind!r}; there are {', '.join(KINDS)}, with [] for a list")
        return params

    @field_validator("statement_timeout")
    @classmethod
    def _positive(cls, seconds: float | None) -> float | None:
        if seconds is not None and not 0.001 <= seconds <= 2_000_000:
            raise ValueError("give seconds, from 0.001 to 2000000")
        return seconds


@dataclass(frozen=True, slots=True)
class BoundQuery:
    """A query of the file, with values that were checked."""

    name: str
    query: NamedQuery
    values: dict[str, Value]


@dataclass(frozen=True, slots=True)
class Reading:
    """A query that is ready to run."""

    conn: Connection[Any]
    """In its transaction; nothing is committed."""
    statement: bytes
    """One statement, the values inside: it can be part of a COPY or an EXPLAIN, which take no parameters."""
    columns: list[Column]


def find_query(name: str, params: Mapping[str, object]) -> BoundQuery:
    """The query `name` of the file as it is now, with `params`; raises Fail that says what to do."""
    path = os.environ.get(SETTING, "").strip()
    if not path:
        raise Fail(f"there are no queries: set {SETTING} for the daemon to {EXAMPLE}")
    try:
        sections = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as exc:
        raise Fail(f"{SETTING}: {path} cannot be read: {exc.strerror}") from None
    except ValueError as exc:  # of TOML or of UTF-8
        raise Fail(f"{SETTING}: {path} is no TOML file: {exc}") from None
    if name not in sections:
        raise Fail(f"there is no query {name!r}; {SETTING} has {', '.join(sorted(sections)) or 'none'}")
    try:
        query = NamedQuery.model_validate(sections[name])
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise Fail(f"{SETTING}: query {name!r}: {f'{place}: ' if place else ''}{first['msg']}") from None
    try:
        return BoundQuery(name, query, checked(query.params, params))
    except ValueError as exc:
        raise Fail(f"query {name!r}: {exc}") from None


class TookTooLong(Fail):
    """The query took longer than it may."""


@contextmanager
def reading(ctx: Context, bound: BoundQuery, *, timeout_s: float | None = None) -> Iterator[Reading]:
    """Opens the query's database and checks the query there; what runs inside ends at once when the job is canceled.

    `timeout_s` is for each statement, where the query's own statement_timeout is not shorter. Errors of the query
    become Fail, those of the connection remain what they are: another try may help.
    """
    most_s = min((seconds for seconds in (timeout_s, bound.query.statement_timeout) if seconds), default=None)
    try:
        with stopping(ctx, _connect(ctx, bound)) as conn:
            conn.read_only, conn.isolation_level = True, psycopg.IsolationLevel.REPEATABLE_READ
            yield _prepared(conn, bound, most_s)
            conn.rollback()
    except errors.QueryCanceled:
        if most_s is None:  # somebody at the server ended it
            raise
        which = f"its timeout of {most_s:g} s" if most_s == timeout_s else "its statement_timeout"
        raise TookTooLong(f"query {bound.name!r} took longer than {which}") from None
    except psycopg.Error as exc:
        ctx.raise_if_canceled()
        # Without a SQLSTATE it is a value that Python cannot hold, such as a date without end.
        if (exc.sqlstate or "").startswith(HOPELESS) or (exc.sqlstate is None and isinstance(exc, psycopg.DataError)):
            reason = " ".join((exc.diag.message_primary or str(exc)).split())
            raise Fail(f"query {bound.name!r}: {reason}") from None
        raise


def _connect(ctx: Context, bound: BoundQuery) -> Connection[Any]:
    variable = bound.query.dsn_env
    if variable is None:
        return ctx.connect()
    dsn = os.environ.get(variable, "").strip()
    if not dsn:
        raise Fail(f"query {bound.name!r}: set {variable} for the daemon to the DSN of its database")
    try:
        return psycopg.connect(dsn, connect_timeout=10, application_name="dispatcher job", client_encoding="utf8")
    except psycopg.OperationalError as exc:
        reason = str(exc).splitlines()[0] if str(exc) else "no reason given"
        raise DatabaseUnavailable(f"query {bound.name!r}: cannot connect by {variable}: {reason}") from None
    except psycopg.ProgrammingError:  # its text would show the DSN, and with it the password
        raise Fail(f"query {bound.name!r}: {variable} is no DSN of PostgreSQL") from None


def _prepared(conn: Connection[Any], bound: BoundQuery, timeout_s: float | None) -> Reading:
    cursor = psycopg.ClientCursor(conn)
    cursor.adapters.register_dumper(int, _Whole)
    cursor.adapters.register_dumper(Decimal, _Exact)
    cursor.adapters.register_dumper(str, _Text)
    cursor.adapters.register_dumper(list, _List)
    try:
        text = cursor.mogrify(bound.query.sql.encode(), bound.values)
    except (psycopg.ProgrammingError, TypeError) as exc:
        raise Fail(f"query {bound.name!r}: {exc}; write placeholders as %(name)s, and % as %%") from None
    statement = text.rstrip().rstrip(";").encode()
    settings = SETTINGS | {"statement_timeout": str(round((timeout_s or 0) * 1000))}
    for name, value in settings.items():
        conn.execute("select set_config(%s, %s, true)", [name, value])
    # The extended protocol (binary=True) takes one statement only. From the first query on, which was ours, PostgreSQL
    # does not let the transaction become READ WRITE.
    described = conn.execute(b"select * from (\n" + statement + b"\n) as query limit 0", binary=True).description
    return Reading(conn, statement, described or [])


class _Whole(Dumper):
    """In parentheses: -5::text would be the negative of a text."""

    oid = psycopg.postgres.types["int8"].oid

    def dump(self, obj: int) -> bytes:
        return b"%d" % obj

    def quote(self, obj: int) -> bytes:
        return b"(%d)" % obj


class _Exact(DecimalDumper):
    """The same."""

    def quote(self, obj: Decimal) -> bytes:
        return b"(" + bytes(super().quote(obj)) + b")"


class _Sealed(Dumper):
    """With every sign escaped: where a placeholder stands in a comment or in quotes, its value must not end them."""

    def quote(self, obj: object) -> bytes:
        return b" E'" + NOT_PLAIN.sub(lambda sign: b"\\x%02x" % ord(sign[0]), bytes(self.dump(obj) or b"")) + b"'"


class _Text(_Sealed, StrDumperUnknown):
    pass


class _List(_Sealed, ListDumper):
    pass
